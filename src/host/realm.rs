//! Which files the daemon may reach, by the kernel's Landlock (<https://docs.kernel.org/userspace-api/landlock.html>): whoever
//! takes it over reads no more of the machine than it needs itself, and writes nothing but what is its own.
//!
//! From Linux 6.7 on it also keeps the ports of TCP that the daemon may listen at to those of its settings; where it connects to is
//! not bounded, since that is what egress is for.
//!
//! What is open already stays open, sockets with a path can be connected to, and the programs that the daemon starts are held
//! to the same. A directory on which another disk is mounted later is another directory: mounts come first.

use std::fs::OpenOptions;
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, LandlockStatus, NetPort, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetStatus, Scope, path_beneath_rules,
};

use super::{HostError, scratch};

/// What is asked of the kernel: the newest that was tried. An older one keeps what it knows of it.
const ABI_TRIED: ABI = ABI::V6;

/// Read by whatever is linked to a C library: settings, users, libraries, programs, processes, control groups. What is not there
/// is left out.
const SYSTEM: [&str; 14] = [
    "/etc",
    "/usr",
    "/bin",
    "/sbin",
    "/lib",
    "/lib64",
    "/proc",
    "/sys/fs/cgroup",
    "/dev/urandom",
    // What /etc/resolv.conf is a link to, and where the C library finds users.
    "/run/systemd/resolve",
    "/run/systemd/userdb",
    "/run/host/userdb",
    "/run/nscd",
    "/var/lib/sss",
];

/// Where the programs are that the daemon starts (mkfs.ext4, debugfs).
const PROGRAMS: [&str; 2] = ["/usr/sbin", "/sbin"];

/// What starts a program that is linked to libraries (ld.so(8)); its directory may be run from, since an upgrade replaces the file.
const LOADERS: [&str; 3] = [
    "/lib64/ld-linux-x86-64.so.2",
    "/lib/ld-linux-aarch64.so.1",
    "/lib/ld-linux.so.2",
];

/// Where everybody may write, and the daemon must not.
const ANYBODYS: [&str; 4] = ["/var/tmp", "/tmp", "/dev/shm", "/run/lock"];

/// A file that everybody may open for writing, and the daemon has no use for.
const NOBODYS: &str = "/dev/zero";

/// What [`escapes`] calls a port of TCP that is none of the daemon's.
const ANY_PORT: &str = "any port of TCP";

/// The first version of the interface that knows of ports.
const ABI_OF_PORTS: i32 = 4;

/// Directories, each with all below it, and ports.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Realm {
    /// The daemon's own: read and written. Those that are not there are nobody's.
    pub own: Vec<PathBuf>,
    /// Read beside what any program reads.
    pub read: Vec<PathBuf>,
    /// The ports of TCP that it listens at.
    pub ports: Vec<u16>,
}

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Confined {
    /// Landlock holds, in this version of its interface.
    To(i32),
    /// This kernel has no Landlock (Linux 5.19 or later), or was started without.
    NoLandlock,
}

/// What was found when it was done.
static CONFINED: OnceLock<Confined> = OnceLock::new();

/// Confines this thread and all that it starts from now on: call it before the first other thread. For good.
///
/// # Errors
/// [`HostError::System`]: the kernel has Landlock and refuses it.
pub fn confine(realm: &Realm) -> Result<Confined, HostError> {
    let failed = |error| HostError::system("confine casemated to its files", error);
    let status = restrict(realm).map_err(|error| failed(io::Error::other(error)))?;
    let confined = match (status.ruleset, status.landlock) {
        // One that cannot move files between directories (before 5.19) is asked for nothing by the library.
        (RulesetStatus::NotEnforced, _)
        | (_, LandlockStatus::NotEnabled | LandlockStatus::NotImplemented) => Confined::NoLandlock,
        (
            _,
            LandlockStatus::Available {
                effective_abi,
                kernel_abi,
            },
        ) => Confined::To(kernel_abi.unwrap_or(effective_abi as i32)),
    };
    // Whoever is confined once more is confined to both.
    let _ = CONFINED.set(confined);
    Ok(confined)
}

fn restrict(realm: &Realm) -> Result<landlock::RestrictionStatus, landlock::RulesetError> {
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    let own = read
        | AccessFs::WriteFile
        | AccessFs::Truncate
        | AccessFs::MakeReg
        | AccessFs::MakeDir
        | AccessFs::MakeSock
        | AccessFs::RemoveFile
        | AccessFs::RemoveDir
        | AccessFs::Refer;
    let run = read | AccessFs::Execute;
    let loaders = LOADERS
        .iter()
        .filter_map(|loader| Path::new(loader).canonicalize().ok())
        .filter_map(|loader| loader.parent().map(Path::to_owned));
    let programs = PROGRAMS.iter().map(PathBuf::from).chain(loaders);
    Ruleset::default()
        .handle_access(AccessFs::from_all(ABI_TRIED))?
        .handle_access(AccessNet::BindTcp)?
        .scope(scopes())?
        .create()?
        .add_rules(path_beneath_rules(SYSTEM, read))?
        .add_rules(path_beneath_rules(&realm.read, read))?
        .add_rules(path_beneath_rules(programs, run))?
        .add_rules(path_beneath_rules(
            ["/dev/null"],
            AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::Truncate,
        ))?
        .add_rules(path_beneath_rules(&realm.own, own))?
        .add_rules(ports(&realm.ports))?
        .restrict_self()
}

fn ports(ports: &[u16]) -> impl Iterator<Item = Result<NetPort, landlock::RulesetError>> {
    let ports = ports.iter();
    ports.map(|port| Ok(NetPort::new(*port, AccessNet::BindTcp)))
}

/// No signals to others, and no abstract sockets of others, unless the service manager has one (`sd_notify(3)`).
fn scopes() -> BitFlags<Scope> {
    let notify = std::env::var_os("NOTIFY_SOCKET").unwrap_or_default();
    if notify.as_bytes().starts_with(b"@") {
        Scope::Signal.into()
    } else {
        Scope::from_all(ABI_TRIED)
    }
}

/// What [`confine`] came to; `None` when nobody called it.
#[must_use]
pub fn confined() -> Option<Confined> {
    CONFINED.get().copied()
}

/// Tries to write where everybody but the confined may, and to listen where anybody may and the kernel would keep the confined from
/// it; where that went well. It leaves nothing behind.
#[must_use]
pub fn escapes() -> Vec<&'static str> {
    let device = OpenOptions::new().write(true).open(NOBODYS);
    let refused = device.is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied);
    let device = (!refused).then_some(NOBODYS);
    let directories = ANYBODYS
        .into_iter()
        .filter(|directory| scratch::file(Path::new(directory)).is_ok());
    let knows_ports = !matches!(confined(), Some(Confined::To(abi)) if abi < ABI_OF_PORTS);
    let port = knows_ports && TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).is_ok();
    let port = port.then_some(ANY_PORT);
    device.into_iter().chain(directories).chain(port).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::net::UnixListener;
    use std::process::Command;

    use super::*;
    use crate::host::child;

    fn is_refused<T>(tried: io::Result<T>) -> bool {
        tried.is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied)
    }

    #[test]
    fn only_its_own_is_written_and_no_more_is_read_than_it_was_given() {
        if !child::is_child() {
            return child::run(
                "host::realm::tests::only_its_own_is_written_and_no_more_is_read_than_it_was_given",
                &[],
            );
        }
        let own = tempfile::tempdir().unwrap();
        let read = tempfile::tempdir().unwrap();
        let other = tempfile::tempdir().unwrap();
        for directory in [&read, &other] {
            fs::write(directory.path().join("file"), "text").unwrap();
        }
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let free = listener.local_addr().unwrap().port();
        drop(listener);
        let realm = Realm {
            own: vec![own.path().to_owned(), "/no/such/directory".into()],
            read: vec![read.path().to_owned()],
            ports: vec![free],
        };
        assert!(escapes().contains(&NOBODYS), "nothing holds yet");
        assert!(escapes().contains(&ANY_PORT), "nothing holds yet");
        assert_eq!(confined(), None);
        let found = confine(&realm).unwrap();
        assert_eq!(confined(), Some(found));
        let Confined::To(abi) = found else {
            // This kernel has no Landlock: there is nothing to see.
            return;
        };
        assert!(abi >= 2, "{abi}");
        assert_eq!(escapes(), [""; 0]);

        // Its own port, and whoever listens at another; no other of its own.
        let listens = |port: u16| TcpListener::bind((Ipv4Addr::LOCALHOST, port));
        let own_port = listens(free).unwrap();
        let connected = std::net::TcpStream::connect(own_port.local_addr().unwrap());
        assert!(connected.is_ok(), "{connected:?}");
        for other in [0, free.wrapping_add(1).max(1024)] {
            assert_eq!(is_refused(listens(other)), abi >= ABI_OF_PORTS, "{other}");
        }

        // Its own: all that the daemon does with files.
        let at = |name: &str| own.path().join(name);
        fs::create_dir(at("a")).unwrap();
        fs::create_dir(at("b")).unwrap();
        fs::write(at("a/file"), "text").unwrap();
        fs::rename(at("a/file"), at("b/file")).unwrap();
        fs::hard_link(at("b/file"), at("a/link")).unwrap();
        OpenOptions::new()
            .write(true)
            .truncate(true)
            .open(at("b/file"))
            .unwrap();
        drop(UnixListener::bind(at("sock")).unwrap());
        scratch::file(own.path()).unwrap();
        fs::remove_dir_all(at("a")).unwrap();

        // What it was given, and what is neither.
        let shown = read.path().join("file");
        assert_eq!(fs::read_to_string(&shown).unwrap(), "text");
        assert!(is_refused(fs::write(&shown, "")));
        assert!(is_refused(fs::remove_file(&shown)));
        assert!(is_refused(fs::rename(&shown, at("mine"))));
        let hidden = other.path().join("file");
        assert!(is_refused(fs::read(&hidden)));
        assert!(is_refused(fs::read_dir(other.path())));
        assert!(is_refused(fs::write(other.path().join("new"), "")));
        assert!(is_refused(fs::create_dir(other.path().join("new"))));
        assert!(is_refused(std::os::unix::fs::symlink("/etc", at("link"))));

        // A link leads nowhere, and a program of its own cannot be run.
        fs::copy("/bin/true", at("program")).unwrap();
        fs::set_permissions(
            at("program"),
            std::os::unix::fs::PermissionsExt::from_mode(0o755),
        )
        .unwrap();
        assert!(is_refused(Command::new(at("program")).status()));
        if Path::new("/usr/sbin/mkfs.ext4").exists() {
            let made = Command::new("/usr/sbin/mkfs.ext4").arg("-V").output();
            assert!(made.unwrap().status.success());
        }
        // Threads that are started later are held to the same.
        let there = std::thread::spawn(escapes).join().unwrap();
        assert_eq!(there, [""; 0]);
    }
}
