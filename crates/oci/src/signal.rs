//! Signal names to numbers, for the signal that asks a container to end.

use berth_cri::runtime::v1::Signal;

/// SIGTERM, when neither request nor image says otherwise.
pub const DEFAULT_STOP_SIGNAL: i32 = 15;

/// As programs see them: the two below are taken by the C library (signal(7)).
const SIGRTMIN: i32 = 34;
const SIGRTMAX: i32 = 64;

/// No signal of Linux has this name or number.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{value:?} is not a signal of Linux: expected a name like SIGTERM, TERM or SIGRTMIN+3, or a number from 1 to 64"
)]
pub struct UnknownSignal {
    pub value: String,
}

/// The signal that stops a container: the request's (`ContainerConfig.stop_signal`), else the image's STOPSIGNAL, else
/// SIGTERM.
///
/// # Errors
/// A value that is no signal, whoever gave it.
pub fn stop_signal(requested: i32, image: &str) -> Result<i32, UnknownSignal> {
    match Signal::try_from(requested) {
        Ok(Signal::RuntimeDefault) if image.is_empty() => Ok(DEFAULT_STOP_SIGNAL),
        Ok(Signal::RuntimeDefault) => signal_number(image),
        Ok(signal) => cri_number(signal),
        Err(_) => Err(UnknownSignal { value: requested.to_string() }),
    }
}

/// The number of a CRI signal, whose names spell `+` and `-` out.
fn cri_number(signal: Signal) -> Result<i32, UnknownSignal> {
    let name = signal.as_str_name();
    signal_number(&name.strip_prefix("SIGNAL_").unwrap_or(name).replace("PLUS", "+").replace("MINUS", "-"))
}

/// The CRI name of a signal number, as ContainerStatus reports it.
pub fn cri_signal(number: i32) -> Signal {
    (1..=65)
        .filter_map(|value| Signal::try_from(value).ok())
        .find(|signal| cri_number(*signal) == Ok(number))
        .unwrap_or(Signal::RuntimeDefault)
}

/// The number of a signal by name (with or without `SIG`, any case, `RTMIN+n`, `RTMAX-n`) or in digits.
///
/// # Errors
/// No signal of Linux.
pub fn signal_number(text: &str) -> Result<i32, UnknownSignal> {
    let unknown = || UnknownSignal { value: text.to_owned() };
    let trimmed = text.trim();
    if let Ok(number) = trimmed.parse::<i32>() {
        return Some(number).filter(|number| (1..=SIGRTMAX).contains(number)).ok_or_else(unknown);
    }
    let upper = trimmed.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let real_time = if let Some(rest) = name.strip_prefix("RTMIN") {
        offset(rest, '+').map(|offset| SIGRTMIN + offset)
    } else if let Some(rest) = name.strip_prefix("RTMAX") {
        offset(rest, '-').map(|offset| SIGRTMAX - offset)
    } else {
        NAMES.iter().find(|(known, _)| *known == name).map(|(_, number)| *number)
    };
    real_time.ok_or_else(unknown)
}

/// Nothing, or a sign and a distance that stays among the real-time signals.
fn offset(text: &str, sign: char) -> Option<i32> {
    if text.is_empty() {
        return Some(0);
    }
    let digits = text.strip_prefix(sign).filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()))?;
    digits.parse().ok().filter(|offset| (0..=SIGRTMAX - SIGRTMIN).contains(offset))
}

/// signal(7), the numbers of x86 and ARM.
const NAMES: [(&str, i32); 34] = [
    ("HUP", 1),
    ("INT", 2),
    ("QUIT", 3),
    ("ILL", 4),
    ("TRAP", 5),
    ("ABRT", 6),
    ("IOT", 6),
    ("BUS", 7),
    ("FPE", 8),
    ("KILL", 9),
    ("USR1", 10),
    ("SEGV", 11),
    ("USR2", 12),
    ("PIPE", 13),
    ("ALRM", 14),
    ("TERM", 15),
    ("STKFLT", 16),
    ("CHLD", 17),
    ("CLD", 17),
    ("CONT", 18),
    ("STOP", 19),
    ("TSTP", 20),
    ("TTIN", 21),
    ("TTOU", 22),
    ("URG", 23),
    ("XCPU", 24),
    ("XFSZ", 25),
    ("VTALRM", 26),
    ("PROF", 27),
    ("WINCH", 28),
    ("IO", 29),
    ("POLL", 29),
    ("PWR", 30),
    ("SYS", 31),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_in_every_spelling() {
        for (text, number) in [
            ("SIGTERM", 15),
            ("TERM", 15),
            ("term", 15),
            ("15", 15),
            ("SIGRTMIN", 34),
            ("SIGRTMIN+3", 37),
            ("RTMAX-14", 50),
            ("SIGRTMAX", 64),
            (" SIGQUIT ", 3),
        ] {
            assert_eq!(signal_number(text), Ok(number), "{text}");
        }
        for text in ["", "SIG", "SIGNOPE", "0", "65", "-1", "RTMIN+31", "RTMIN-1", "RTMIN+", "RTMAX+1"] {
            assert!(signal_number(text).is_err(), "{text}");
        }
    }

    #[test]
    fn every_cri_signal_has_a_number_and_comes_back() {
        for value in 1..=65 {
            let signal = Signal::try_from(value).expect("CRI has 65 signals");
            let number = stop_signal(value, "SIGQUIT").unwrap_or_else(|fault| panic!("{signal:?}: {fault}"));
            assert_eq!(stop_signal(cri_signal(number) as i32, ""), Ok(number), "{signal:?}");
        }
        assert_eq!(stop_signal(Signal::Sigrtminplus3 as i32, ""), Ok(37));
        assert_eq!(stop_signal(Signal::Sigrtmaxminus14 as i32, ""), Ok(50));
    }

    #[test]
    fn image_decides_when_the_request_does_not() {
        assert_eq!(stop_signal(0, "SIGQUIT"), Ok(3));
        assert_eq!(stop_signal(0, ""), Ok(15));
        assert_eq!(stop_signal(Signal::Sigusr1 as i32, "SIGQUIT"), Ok(10));
        assert!(stop_signal(0, "SIGNOPE").is_err());
        assert!(stop_signal(99, "").is_err());
    }
}
