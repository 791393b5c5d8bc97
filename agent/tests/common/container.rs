//! A container made by hand.

use std::{path::Path, process::Command};

use migration_harness::process;

/// A container made by hand: mount, network, IPC and UTS namespaces of its own, a root file system made of parts of this
/// one, and this one's pid namespace. `$1` is its root directory, `$2` and `$3` are seen in it under their own names; the
/// rest is executed.
const CONTAINER: &str = r#"
root=$1 one=$2 other=$3
shift 3
mount --make-rprivate /
mount -t tmpfs container "$root"
cd "$root"
for name in usr etc opt proc dev ./"$one" ./"$other"; do
    mkdir -p "./$name"
    mount --rbind "/$name" "./$name"
done
for name in bin lib lib32 lib64 sbin; do
    if [ -L "/$name" ]; then cp -a "/$name" .; elif [ -d "/$name" ]; then mkdir "$name"; mount --rbind "/$name" "./$name"; fi
done
mkdir -p tmp run was
echo container > only-in-a-container
hostname in-a-container
ip link set lo up
pivot_root . was
cd /
umount -l was
# As a container runtime does: what was opened outside cannot be found in here.
exec < /dev/null
exec "$@"
"#;

/// `words` in a container whose root directory is mounted at `root`, in which `visible` and the built programs have
/// their own names. `before` are a shell's commands that are run outside, by what becomes the container.
pub fn command(root: &Path, visible: &Path, before: &str, words: &[&str]) -> Command {
    std::fs::create_dir_all(root).unwrap();
    let binaries = process::program("migration-launch").unwrap();
    let binaries = binaries.parent().unwrap().parent().unwrap();
    let mut command = Command::new("unshare");
    command.args(["--mount", "--net", "--ipc", "--uts", "bash", "-c"]);
    command.arg(format!("set -e\n{before}{CONTAINER}")).arg("sh").args([root, visible, binaries]).args(words);
    command
}
