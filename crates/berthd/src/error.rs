//! How an error is shown to people: once, with everything that led to it.

use std::error::Error;
use std::fmt;

/// Displays an error and its sources in one line, outermost first.
///
/// For use where an error stops being passed on: in a gRPC status, on stderr before the daemon ends, in a log line.
#[derive(Debug)]
pub struct Chain<'a>(pub &'a (dyn Error + 'static));

impl fmt::Display for Chain<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut said = self.0.to_string();
        formatter.write_str(&said)?;
        let mut source = self.0.source();
        while let Some(error) = source {
            let text = error.to_string();
            // Some libraries repeat their source in their own text; saying it twice helps nobody.
            if !said.ends_with(&text) {
                write!(formatter, ": {text}")?;
            }
            said = text;
            source = error.source();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot mount {what}")]
    struct Mount {
        what: &'static str,
        #[source]
        source: Wrapped,
    }

    #[derive(Debug, thiserror::Error)]
    #[error("step failed: {0}")]
    struct Wrapped(#[source] io::Error);

    #[test]
    fn every_cause_is_said_and_none_twice() {
        let error = Mount { what: "/proc", source: Wrapped(io::Error::other("not permitted")) };
        assert_eq!(Chain(&error).to_string(), "cannot mount /proc: step failed: not permitted");
    }
}
