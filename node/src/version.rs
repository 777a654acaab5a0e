//! What the programs say their version is.

/// The workspace's version, or LOCKSTEP_VERSION at the time of the build: a package's.
pub const VERSION: &str = of(option_env!("LOCKSTEP_VERSION"));

const fn of(told: Option<&'static str>) -> &'static str {
    match told {
        Some(told) if !told.is_empty() => told,
        _ => env!("CARGO_PKG_VERSION"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_build_is_told_its_version() {
        assert_eq!(of(None), env!("CARGO_PKG_VERSION"));
        assert_eq!(of(Some("")), env!("CARGO_PKG_VERSION"));
        assert_eq!(of(Some("0.2.0~test")), "0.2.0~test");
    }
}
