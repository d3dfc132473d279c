//! How an outcome is told on the error stream.

use serde::Serialize;

use crate::session::ExecOutcome;

/// The two ways, by the version of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StatusFormat {
    /// Since v4: an object, always.
    Json,
    /// Before: the reason, if it failed.
    Text,
}

#[derive(Serialize)]
struct Status<'a> {
    status: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    details: Option<Details<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<u16>,
}

#[derive(Serialize)]
struct Details<'a> {
    causes: [Cause<'a>; 1],
}

#[derive(Serialize)]
struct Cause<'a> {
    reason: &'a str,
    message: &'a str,
}

impl StatusFormat {
    /// The bytes for the error stream, possibly none.
    pub(crate) fn encode(self, outcome: &ExecOutcome) -> Vec<u8> {
        let (text, code) = match outcome {
            ExecOutcome::Exited(0) => (None, None),
            ExecOutcome::Exited(code) => {
                // Clients parse eight bits and call all else unknown; what is no success must not become one.
                let code =
                    u8::try_from(code & 0xff).ok().filter(|code| *code != 0).unwrap_or(255).to_string();
                (Some(format!("command terminated with non-zero exit code: exit status {code}")), Some(code))
            }
            ExecOutcome::Failed(reason) => (Some(format!("Internal error occurred: {reason}")), None),
        };
        if self == Self::Text {
            return text.unwrap_or_default().into_bytes();
        }
        let failure = text.as_deref();
        let status = match (failure, &code) {
            (None, _) => Status { status: "Success", message: None, reason: None, details: None, code: None },
            (Some(message), Some(code)) => Status {
                status: "Failure",
                message: Some(message),
                reason: Some("NonZeroExitCode"),
                details: Some(Details { causes: [Cause { reason: "ExitCode", message: code }] }),
                code: None,
            },
            (Some(message), None) => Status {
                status: "Failure",
                message: Some(message),
                reason: Some("InternalError"),
                details: None,
                code: Some(500),
            },
        };
        serde_json::to_vec(&status).expect("strings and numbers")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(outcome: ExecOutcome) -> String {
        String::from_utf8(StatusFormat::Json.encode(&outcome)).unwrap()
    }

    #[test]
    fn outcomes_are_told_as_kubectl_parses_them() {
        assert_eq!(json(ExecOutcome::Exited(0)), r#"{"status":"Success"}"#);
        assert_eq!(
            json(ExecOutcome::Exited(3)),
            r#"{"status":"Failure","message":"command terminated with non-zero exit code: exit status 3","reason":"NonZeroExitCode","details":{"causes":[{"reason":"ExitCode","message":"3"}]}}"#
        );
        assert_eq!(
            json(ExecOutcome::Failed("no such file".into())),
            r#"{"status":"Failure","message":"Internal error occurred: no such file","reason":"InternalError","code":500}"#
        );
    }

    #[test]
    fn a_failure_never_becomes_a_success() {
        assert!(json(ExecOutcome::Exited(256)).contains(r#""message":"255""#));
        assert!(json(ExecOutcome::Exited(-1)).contains(r#""message":"255""#));
        assert!(json(ExecOutcome::Exited(137)).contains(r#""message":"137""#));
    }

    #[test]
    fn older_protocols_get_text_and_only_of_failures() {
        assert_eq!(StatusFormat::Text.encode(&ExecOutcome::Exited(0)), b"");
        assert!(
            String::from_utf8(StatusFormat::Text.encode(&ExecOutcome::Exited(7))).unwrap().ends_with('7')
        );
    }
}
