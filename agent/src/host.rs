//! Facts about this machine: those a checkpoint records and a restore compares, and what its network is locked with.

use std::{env, fs};

use criu_rpc::{NetworkLock, Version};
use lazy_pages::format::Host;

use crate::error::AgentError;

/// Describes this machine.
pub fn facts(criu: Version) -> Host {
    let name = rustix::system::uname();
    Host {
        kernel: name.release().to_string_lossy().into_owned(),
        architecture: name.machine().to_string_lossy().into_owned(),
        cpu_features: cpu_features(),
        criu_version: criu.as_number(),
    }
}

/// Refuses a machine on which the processes of a checkpoint would crash or could not be rebuilt.
///
/// # Errors
/// [`AgentError::WrongMachine`] for another architecture, or a CPU without a feature the source had: programs choose code
/// by CPU features when they start and never look again.
pub fn refuse_other(checkpoint: &Host, here: &Host) -> Result<(), AgentError> {
    if checkpoint.architecture != here.architecture {
        let (needs, has) = (checkpoint.architecture.clone(), here.architecture.clone());
        return Err(AgentError::WrongMachine { needs, has });
    }
    let missing: Vec<&str> = checkpoint
        .cpu_features
        .iter()
        .map(String::as_str)
        .filter(|feature| matters(feature) && !here.cpu_features.iter().any(|known| known == feature))
        .collect();
    if !missing.is_empty() {
        return Err(AgentError::WrongMachine {
            needs: format!("the CPU features {}", missing.join(" ")),
            has: "a CPU without them".to_owned(),
        });
    }
    if checkpoint.criu_version > here.criu_version {
        tracing::warn!(
            checkpoint = checkpoint.criu_version,
            here = here.criu_version,
            "the checkpoint was written by a newer CRIU than the one here"
        );
    }
    Ok(())
}

/// Instruction sets a program may have chosen to use. Other flags describe the kernel's or the hypervisor's view and differ
/// between machines on which the same program runs equally well.
fn matters(feature: &str) -> bool {
    const PREFIXES: [&str; 12] =
        ["avx", "sse", "ssse", "amx", "bmi", "fma", "aes", "vaes", "sha", "gfni", "adx", "vpclmul"];
    const NAMES: [&str; 8] = ["popcnt", "movbe", "f16c", "rdrand", "rdseed", "pclmulqdq", "lzcnt", "abm"];
    PREFIXES.iter().any(|prefix| feature.starts_with(prefix)) || NAMES.contains(&feature)
}

/// The instruction sets of this machine's CPU that programs may have chosen to use.
pub fn instruction_sets() -> Vec<String> {
    cpu_features().into_iter().filter(|feature| matters(feature)).collect()
}

fn cpu_features() -> Vec<String> {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = info.lines().find(|line| line.starts_with("flags") || line.starts_with("Features"));
    let flags = line.and_then(|line| line.split_once(':')).map(|(_, flags)| flags).unwrap_or_default();
    flags.split_ascii_whitespace().map(str::to_owned).collect()
}

/// How CRIU is to hold back packets of the TCP connections that it dumps: with the iptables programs where they are
/// installed, which is its default, otherwise with nftables, for which it needs no program.
pub fn network_lock() -> NetworkLock {
    let folders = env::var_os("PATH").unwrap_or_default();
    match env::split_paths(&folders).any(|folder| folder.join("iptables-restore").is_file()) {
        true => NetworkLock::Iptables,
        false => NetworkLock::Nftables,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(features: &[&str]) -> Host {
        Host {
            kernel: "6.1".to_owned(),
            architecture: "x86_64".to_owned(),
            cpu_features: features.iter().map(|&feature| feature.to_owned()).collect(),
            criu_version: 40201,
        }
    }

    #[test]
    fn a_cpu_without_an_instruction_set_the_source_had_is_refused_by_name() {
        let refused = refuse_other(&host(&["sse4_2", "avx512f"]), &host(&["sse4_2"])).unwrap_err();
        assert!(refused.to_string().contains("avx512f"), "{refused}");
    }

    #[test]
    fn a_cpu_with_more_features_or_other_kernel_flags_is_accepted() {
        refuse_other(&host(&["avx2", "pti"]), &host(&["avx2", "avx512f"])).unwrap();
    }

    #[test]
    fn another_architecture_is_refused() {
        let mut arm = host(&[]);
        arm.architecture = "aarch64".to_owned();
        refuse_other(&arm, &host(&[])).unwrap_err();
    }
}
