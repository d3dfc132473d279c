//! The person's terminal.

use std::io::IsTerminal as _;

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

use crate::error::Error;

/// A terminal whose keys go through as they are (termios(3), raw mode). Dropped, it is as it was.
pub(crate) struct Terminal {
    before: Termios,
}

impl Terminal {
    pub(crate) fn raw() -> Result<Self, Error> {
        let terminal = std::io::stdin();
        let before = tcgetattr(&terminal).map_err(|error| Error::Terminal(error.into()))?;
        let mut raw = before.clone();
        raw.make_raw();
        let set = tcsetattr(&terminal, OptionalActions::Now, &raw);
        set.map_err(|error| Error::Terminal(error.into()))?;
        Ok(Self { before })
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // A terminal that is gone needs nothing.
        let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, &self.before);
    }
}

/// Whether a person types.
pub(crate) fn is_terminal() -> bool {
    std::io::stdin().is_terminal()
}

/// Columns and rows.
pub(crate) fn size() -> Option<(u16, u16)> {
    let size = tcgetwinsize(std::io::stdin()).or_else(|_| tcgetwinsize(std::io::stdout())).ok()?;
    Some((size.ws_col, size.ws_row)).filter(|(columns, rows)| *columns > 0 && *rows > 0)
}

/// Columns of what is printed.
pub(crate) fn width() -> Option<usize> {
    let size = tcgetwinsize(std::io::stdout()).ok()?;
    Some(usize::from(size.ws_col)).filter(|columns| *columns > 0)
}
