//! Names of devices: `vendor.com/class=name`.

use std::fmt;
use std::str::FromStr;

/// A qualified name (SPEC.md, "Kind" and "CDI Devices").
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DeviceName {
    /// `vendor.com/class`
    pub(super) kind: String,
    pub(super) device: String,
}

/// Not a qualified device name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{given:?} is no CDI device (vendor.com/class=name): {reason}")]
pub struct NameError {
    given: String,
    reason: String,
}

impl FromStr for DeviceName {
    type Err = NameError;

    fn from_str(given: &str) -> Result<Self, NameError> {
        let fail = |reason: String| NameError { given: given.to_owned(), reason };
        let (kind, device) = given.split_once('=').ok_or_else(|| fail("it has no \"=\"".to_owned()))?;
        check_kind(kind).and_then(|()| check_device(device)).map_err(fail)?;
        Ok(Self { kind: kind.to_owned(), device: device.to_owned() })
    }
}

impl fmt::Display for DeviceName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}={}", self.kind, self.device)
    }
}

/// `vendor/class`
pub(super) fn check_kind(kind: &str) -> Result<(), String> {
    let (vendor, class) = kind.split_once('/').ok_or_else(|| format!("kind {kind:?} has no \"/\""))?;
    check(vendor, "vendor", "_-.", char::is_alphabetic)?;
    check(class, "class", "_-.", char::is_alphabetic)
}

pub(super) fn check_device(device: &str) -> Result<(), String> {
    check(device, "name", "_-.:", char::is_alphanumeric)
}

/// Letters and digits at both ends, these others between; `first` says what it may begin with.
fn check(part: &str, what: &str, others: &str, first: fn(char) -> bool) -> Result<(), String> {
    let plain = |letter: char| letter.is_ascii_alphanumeric();
    let well_formed = part.is_ascii()
        && part.starts_with(first)
        && part.ends_with(plain)
        && part.chars().all(|letter| plain(letter) || others.contains(letter));
    if well_formed {
        Ok(())
    } else {
        Err(format!("{what} {part:?} is empty or has a character that it may not have"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_specification() {
        for good in ["vendor.com/class=name", "v/c=0", "nvidia.com/gpu=GPU-1:2.3", "a_b-c.d/e.f_g=all"] {
            assert_eq!(good.parse::<DeviceName>().unwrap().to_string(), good);
        }
        for bad in [
            "",
            "name",
            "vendor.com=name",
            "vendor.com/class",
            "vendor.com/class=",
            "/class=name",
            "vendor.com/=name",
            "0vendor/class=name",
            "vendor/0class=name",
            "vendor./class=name",
            "vendor/class/x=name",
            "vendor/class=-a",
            "vendor/class=a.",
            "vendor/class=a b",
            "vendör/class=a",
            "vendor/class=a=b",
        ] {
            assert!(bad.parse::<DeviceName>().is_err(), "{bad:?}");
        }
    }
}
