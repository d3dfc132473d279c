//! Keys that end an attachment and not the container.

use crate::error::Error;

/// A sequence of keys, and how much of it was pressed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Keys {
    sequence: Vec<u8>,
    pressed: usize,
}

impl Keys {
    /// `ctrl-p,ctrl-q`: each a letter, or `ctrl-` and one of `a` to `z`, `@`, `[`, `\`, `]`, `^`, `_`. Empty: none.
    pub(super) fn parse(text: &str) -> Result<Self, Error> {
        let keys = text.split(',').filter(|key| !key.is_empty()).map(key).collect::<Option<Vec<u8>>>();
        match keys {
            Some(sequence) => Ok(Self { sequence, pressed: 0 }),
            None => Err(Error::Usage(format!("--detach-keys {text}: must be as in ctrl-p,ctrl-q"))),
        }
    }

    /// What is to be sent of what was typed; None when the sequence is complete.
    pub(super) fn pass(&mut self, typed: &[u8]) -> Option<Vec<u8>> {
        let mut sent = Vec::new();
        for byte in typed {
            if self.sequence.get(self.pressed) == Some(byte) {
                self.pressed += 1;
                if self.pressed == self.sequence.len() {
                    return None;
                }
                continue;
            }
            // It was not meant: what was held back goes out, and this key may begin anew.
            sent.extend(&self.sequence[..self.pressed]);
            self.pressed = 0;
            if self.sequence.first() == Some(byte) {
                self.pressed = 1;
            } else {
                sent.push(*byte);
            }
        }
        Some(sent)
    }
}

fn key(text: &str) -> Option<u8> {
    let letter = text.strip_prefix("ctrl-").unwrap_or(text);
    let [letter] = letter.as_bytes() else { return None };
    match (text.len() > 1, letter.to_ascii_uppercase()) {
        (false, _) => Some(*letter),
        // A terminal sends the letter's place in the alphabet (ASCII).
        (true, upper @ (b'@'..=b'_')) => Some(upper - b'@'),
        (true, _) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_whole_sequence_detaches() {
        let mut keys = Keys::parse("ctrl-p,ctrl-q").unwrap();
        assert_eq!(keys.pass(b"ab"), Some(b"ab".to_vec()));
        assert_eq!(keys.pass(b"x\x10"), Some(b"x".to_vec()));
        assert_eq!(keys.pass(b"\x10y"), Some(b"\x10\x10y".to_vec()));
        assert_eq!(keys.pass(b"\x10"), Some(Vec::new()));
        assert_eq!(keys.pass(b"\x11rest"), None);
    }

    #[test]
    fn keys_are_named_as_docker_names_them() {
        assert_eq!(Keys::parse("ctrl-@,a,ctrl-]").unwrap().sequence, [0, b'a', 29]);
        assert_eq!(Keys::parse("").unwrap().pass(b"\x10\x11"), Some(b"\x10\x11".to_vec()));
        assert!(Keys::parse("ctrl-pq").is_err() && Keys::parse("shift-a").is_err());
    }
}
