//! What the running kernel's userfaultfd can do.

use userfaultfd::{FeatureFlags, UffdBuilder};

/// `UFFD_FEATURE_WP_ASYNC` of `linux/userfaultfd.h`, from kernel 6.7: writes to protected pages are recorded instead of
/// reported, and `PAGEMAP_SCAN`, of the same version, reads them back.
const WP_ASYNC: u64 = 1 << 15;

/// What CRIU asks for to restore on demand: reports of forks, moves, removals and unmappings.
const LAZY: FeatureFlags = FeatureFlags::EVENT_FORK
    .union(FeatureFlags::EVENT_REMAP)
    .union(FeatureFlags::EVENT_REMOVE)
    .union(FeatureFlags::EVENT_UNMAP);

/// Whether page faults of a restored process can be served.
///
/// # Errors
/// With what the kernel said.
pub fn serves_faults() -> Result<(), userfaultfd::Error> {
    offers(LAZY)
}

/// Whether the kernel can tell which pages of a process were written, without stopping it.
///
/// # Errors
/// With what the kernel said.
pub fn tracks_writes() -> Result<(), userfaultfd::Error> {
    offers(FeatureFlags::from_bits_retain(WP_ASYNC))
}

fn offers(features: FeatureFlags) -> Result<(), userfaultfd::Error> {
    UffdBuilder::new().close_on_exec(true).user_mode_only(false).require_features(features).create().map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_feature_no_kernel_has_is_not_offered() {
        assert!(offers(FeatureFlags::from_bits_retain(1 << 62)).is_err());
    }

    #[test]
    fn this_kernel_serves_faults() {
        serves_faults().unwrap();
    }
}
