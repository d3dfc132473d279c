//! `$(NAME)` in texts.

/// Puts variables in: `$(NAME)` is its value, `$$` a dollar; a name that is not known stays as it stands.
pub(super) fn expand(text: &str, env: &[(String, String)]) -> String {
    let mut expanded = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        let (before, from) = rest.split_at(at);
        expanded.push_str(before);
        let (put, used) = match from.as_bytes().get(1) {
            Some(b'$') => ("$", 2),
            Some(b'(') => match from.find(')') {
                Some(end) => {
                    let name = &from[2..end];
                    let known = env.iter().find(|(known, _)| known == name);
                    (known.map_or(&from[..=end], |(_, value)| value.as_str()), end + 1)
                }
                None => ("$", 1),
            },
            _ => ("$", 1),
        };
        expanded.push_str(put);
        rest = &from[used..];
    }
    expanded.push_str(rest);
    expanded
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn known_names_become_their_values() {
        let env = [("A".to_owned(), "1".to_owned()), ("B".to_owned(), "$(A)".to_owned())];
        for (text, expanded) in [
            ("$(A)", "1"),
            ("x$(A)y$(B)", "x1y$(A)"),
            ("$(NONE)", "$(NONE)"),
            ("$$(A)", "$(A)"),
            ("$$$(A)", "$1"),
            ("$A $", "$A $"),
            ("$(A", "$(A"),
            ("", ""),
        ] {
            assert_eq!(expand(text, &env), expanded, "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_text_without_dollars_stays(text in "[^$]*", any in "\\PC*") {
            prop_assert_eq!(expand(&text, &[]), text);
            let _ = expand(&any, &[]);
        }
    }
}
