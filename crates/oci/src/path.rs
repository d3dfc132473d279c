use std::path::PathBuf;

/// An absolute path without `.`, `..` and double slashes, worked out on the text alone: the rootfs is not asked, and
/// `..` at the top stays at the top. `None` if it has a NUL.
pub(crate) fn clean(path: &str) -> Option<PathBuf> {
    if path.contains('\0') {
        return None;
    }
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    Some(PathBuf::from(format!("/{}", parts.join("/"))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dots_are_worked_out_and_the_top_is_never_left() {
        for (path, expected) in
            [("/", "/"), ("/a//b/./c/", "/a/b/c"), ("/a/../../b", "/b"), ("//etc/hosts", "/etc/hosts")]
        {
            assert_eq!(clean(path), Some(PathBuf::from(expected)), "{path}");
        }
        assert_eq!(clean("/a\0b"), None);
    }
}
