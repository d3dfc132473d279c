//! What the texts of kernel files have in common.

/// `name value` lines, as in `memory.stat` and `cpu.stat`. Lines of another shape are passed over: kernels add some.
pub(crate) fn pairs(text: &str) -> impl Iterator<Item = (&str, u64)> {
    text.lines().filter_map(|line| {
        let (name, value) = line.split_once(' ')?;
        Some((name, value.trim_ascii().parse().ok()?))
    })
}

/// Puts each named value of `text` where it belongs, in one pass.
pub(crate) fn fill<const N: usize>(text: &str, wanted: [(&str, &mut Option<u64>); N]) {
    let mut wanted = wanted;
    for (name, value) in pairs(text) {
        if let Some((_, slot)) = wanted.iter_mut().find(|(known, _)| *known == name) {
            **slot = Some(value);
        }
    }
}

/// A device's number as the kernel writes it, `8:16`.
pub(crate) fn device(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}
