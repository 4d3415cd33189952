//! Users and groups of the sandbox, from its own `/etc/passwd` and `/etc/group`.
//!
//! The files belong to an image that we did not make: they are read without blocking, up to a bound, and a line that is not
//! as it should be counts as absent. Parsed here because a static glibc has no name service.

use std::collections::HashMap;
use std::fs::{Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use casemate_link::limits::MAX_USER_BYTES;

/// Bytes of either file that are looked at.
const MAX_FILE_BYTES: u64 = 256 * 1024;

/// Supplementary groups of one user.
const MAX_GROUPS: usize = 64;

/// The user of a process that names none.
const DEFAULT_NAME: &str = "user";

/// The default user's number, in an image without a user of that name.
const DEFAULT_UID: u32 = 1000;

/// As whom a process runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) name: String,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Without `gid`.
    pub(crate) groups: Vec<u32>,
    pub(crate) home: String,
    pub(crate) shell: String,
}

/// The text of the two files, read again when they have changed.
#[derive(Debug, Default)]
pub(crate) struct Accounts {
    passwd: Text,
    group: Text,
    /// Made of both when asked for.
    names: Option<Arc<Names>>,
}

/// Names and numbers of users and groups, for any thread.
#[derive(Debug, Default)]
pub(crate) struct Names {
    users: Table,
    groups: Table,
}

/// Numbers and names in the order of their file; of several lines with one number, or one name, the first counts.
#[derive(Debug, Default)]
struct Table {
    lines: Vec<(u32, String)>,
    by_number: HashMap<u32, usize>,
}

/// A file's text, and how the file looked when it was read.
#[derive(Debug, Default)]
struct Text {
    text: String,
    seen: Option<Stamp>,
}

/// Device, inode, size, and the times of the last change in seconds and nanoseconds.
type Stamp = (u64, u64, u64, i64, i64);

impl Accounts {
    /// Looks at the sandbox's files; one that cannot be read is empty.
    pub(crate) fn refresh(&mut self) {
        let changed = self.passwd.refresh(Path::new("/etc/passwd"));
        if self.group.refresh(Path::new("/etc/group")) || changed {
            self.names = None;
        }
    }

    /// All names, as of the last [`Accounts::refresh`].
    pub(crate) fn names(&mut self) -> Arc<Names> {
        let Self {
            passwd,
            group,
            names,
        } = self;
        let made = names.get_or_insert_with(|| {
            let users = passwd.text.lines().filter_map(Line::parse);
            let groups = group.text.lines().filter_map(parse_group);
            Arc::new(Names {
                users: Table::new(users.map(|line| (line.uid, line.name))),
                groups: Table::new(groups.map(|(name, gid, _)| (gid, name))),
            })
        });
        Arc::clone(made)
    }

    /// Finds a user by name, else by number; no name is the default user, who exists in every sandbox. A number that no
    /// line has is a user with that number as its only group.
    pub(crate) fn resolve(&self, user: Option<&str>) -> Option<Identity> {
        let Some(user) = user else {
            let found = self.find(|line| line.name == DEFAULT_NAME);
            return found.or_else(|| self.by_number(DEFAULT_UID));
        };
        self.find(|line| line.name == user)
            .or_else(|| self.by_number(parse_id(user)?))
    }

    fn by_number(&self, uid: u32) -> Option<Identity> {
        self.find(|line| line.uid == uid).or_else(|| {
            let nobody = Line {
                name: &uid.to_string(),
                uid,
                gid: uid,
                home: "/",
                shell: "",
            };
            Some(self.identity(&nobody))
        })
    }

    fn find(&self, wanted: impl Fn(&Line<'_>) -> bool) -> Option<Identity> {
        let line = self
            .passwd
            .text
            .lines()
            .filter_map(Line::parse)
            .find(wanted)?;
        Some(self.identity(&line))
    }

    fn identity(&self, line: &Line<'_>) -> Identity {
        let mut groups = Vec::new();
        for (_, gid, members) in self.group.text.lines().filter_map(parse_group) {
            let member = members.split(',').any(|member| member == line.name);
            if member && gid != line.gid && !groups.contains(&gid) && groups.len() < MAX_GROUPS {
                groups.push(gid);
            }
        }
        let or = |text: &str, other: &str| if text.is_empty() { other } else { text }.to_owned();
        Identity {
            name: line.name.to_owned(),
            uid: line.uid,
            gid: line.gid,
            groups,
            home: or(line.home, "/"),
            shell: or(line.shell, "/bin/sh"),
        }
    }
}

impl Text {
    /// Says whether it may have changed.
    fn refresh(&mut self, path: &Path) -> bool {
        let stamp = std::fs::metadata(path).ok().as_ref().map(stamp);
        let changed = stamp.is_none() || stamp != self.seen;
        if changed {
            let read = read_bounded(path).ok();
            // As it looked when it was opened: a change in between is seen the next time.
            self.seen = stamp.filter(|_| read.is_some());
            self.text = read.unwrap_or_default();
        }
        changed
    }
}

fn stamp(file: &Metadata) -> Stamp {
    (
        file.dev(),
        file.ino(),
        file.size(),
        file.ctime(),
        file.ctime_nsec(),
    )
}

/// One line of `/etc/passwd` (passwd(5)).
struct Line<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
    shell: &'a str,
}

impl<'a> Line<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let mut fields = line.split(':');
        let (name, _, uid, gid) = (
            fields.next()?,
            fields.next()?,
            fields.next()?,
            fields.next()?,
        );
        let (_, home, shell) = (fields.next()?, fields.next()?, fields.next()?);
        let proper = !name.is_empty() && !line.contains('\0') && fields.next().is_none();
        let (uid, gid) = (parse_id(uid)?, parse_id(gid)?);
        proper.then_some(Self {
            name,
            uid,
            gid,
            home,
            shell,
        })
    }
}

/// Name, number and members of a line of `/etc/group` (group(5)).
fn parse_group(line: &str) -> Option<(&str, u32, &str)> {
    let mut fields = line.split(':');
    let (name, _, gid, members) = (
        fields.next()?,
        fields.next()?,
        fields.next()?,
        fields.next()?,
    );
    fields
        .next()
        .is_none()
        .then_some((name, parse_id(gid)?, members))
}

impl Names {
    /// A user's name.
    pub(crate) fn user(&self, uid: u32) -> Option<&str> {
        self.users.name(uid)
    }

    /// A group's name.
    pub(crate) fn group(&self, gid: u32) -> Option<&str> {
        self.groups.name(gid)
    }

    /// A user's number, by name, else by number.
    pub(crate) fn find_user(&self, user: &str) -> Option<u32> {
        self.users.number(user)
    }

    /// A group's number, by name, else by number.
    pub(crate) fn find_group(&self, group: &str) -> Option<u32> {
        self.groups.number(group)
    }
}

impl Table {
    /// Names that the protocol does not carry are left out.
    fn new<'a>(lines: impl Iterator<Item = (u32, &'a str)>) -> Self {
        let mut table = Self::default();
        for (id, name) in lines.filter(|(_, name)| (1..=MAX_USER_BYTES).contains(&name.len())) {
            table.by_number.entry(id).or_insert(table.lines.len());
            table.lines.push((id, name.to_owned()));
        }
        table
    }

    fn name(&self, id: u32) -> Option<&str> {
        let (_, name) = self.lines.get(*self.by_number.get(&id)?)?;
        Some(name)
    }

    fn number(&self, wanted: &str) -> Option<u32> {
        let named = self.lines.iter().find(|(_, name)| name == wanted);
        named.map(|(id, _)| *id).or_else(|| parse_id(wanted))
    }
}

/// A user's or group's number; the highest means "none" to the kernel, and signs are not digits.
fn parse_id(text: &str) -> Option<u32> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|id| digits && *id != u32::MAX)
}

fn read_bounded(path: &Path) -> io::Result<String> {
    // A FIFO or a device in the file's place must not block PID 1.
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut bytes = Vec::with_capacity(
        usize::try_from(file.metadata()?.len().min(MAX_FILE_BYTES)).unwrap_or(0) + 1,
    );
    file.take(MAX_FILE_BYTES).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn accounts(passwd: &str, group: &str) -> Accounts {
        let text = |text: &str| Text {
            text: text.into(),
            seen: None,
        };
        Accounts {
            passwd: text(passwd),
            group: text(group),
            names: None,
        }
    }

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/bash\n\
        broken line\n\
        evil:x:-1:0::/:\n\
        high:x:4294967295:0::/:\n\
        long:x:1:1:::::\n\
        user:x:1000:1000:User,,,:/home/user:/bin/bash\n\
        user:x:0:0::/root:/bin/sh\n\
        bare:x:1001:100:::\n";
    const GROUP: &str =
        "sudo:x:27:user,bare\nuser:x:1000:user\ndocker:x:998:other,user\nbad:x:y:user\nshort:x:5\n";

    #[test]
    fn the_first_proper_line_counts() {
        let identity = accounts(PASSWD, GROUP).resolve(Some("user")).unwrap();
        assert_eq!(
            (identity.uid, identity.gid, identity.groups),
            (1000, 1000, vec![27, 998])
        );
        assert_eq!(
            (identity.home.as_str(), identity.shell.as_str()),
            ("/home/user", "/bin/bash")
        );
    }

    #[test]
    fn users_go_by_name_then_by_number() {
        let accounts = accounts(PASSWD, GROUP);
        assert_eq!(accounts.resolve(Some("0")).unwrap().name, "root");
        let bare = accounts.resolve(Some("bare")).unwrap();
        assert_eq!(
            (bare.home.as_str(), bare.shell.as_str(), bare.groups),
            ("/", "/bin/sh", vec![27])
        );
        let stranger = accounts.resolve(Some("4242")).unwrap();
        assert_eq!(
            (stranger.uid, stranger.gid, stranger.groups),
            (4242, 4242, vec![])
        );
        for absent in [
            "nobody",
            "evil",
            "high",
            "long",
            "broken line",
            "",
            "4294967295",
            "-5",
        ] {
            assert_eq!(accounts.resolve(Some(absent)), None, "{absent}");
        }
    }

    #[test]
    fn names_and_numbers_are_found_both_ways() {
        let names = accounts(PASSWD, GROUP).names();
        assert_eq!(
            (names.user(0), names.user(1000)),
            (Some("root"), Some("user"))
        );
        assert_eq!((names.group(27), names.group(28)), (Some("sudo"), None));
        assert_eq!(
            (names.find_user("bare"), names.find_user("user")),
            (Some(1001), Some(1000))
        );
        assert_eq!(names.find_user("4242"), Some(4242));
        assert_eq!(
            (names.find_group("docker"), names.find_group("nix")),
            (Some(998), None)
        );
    }

    #[test]
    fn the_default_user_exists_in_every_image() {
        assert_eq!(accounts(PASSWD, "").resolve(None).unwrap().name, "user");
        let ubuntu = accounts("ubuntu:x:1000:1000::/home/ubuntu:/bin/bash", "");
        assert_eq!(ubuntu.resolve(None).unwrap().home, "/home/ubuntu");
        let identity = accounts("", "").resolve(None).unwrap();
        assert_eq!(
            (identity.uid, identity.gid, identity.home.as_str()),
            (1000, 1000, "/")
        );
    }

    #[test]
    fn a_changed_file_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("passwd");
        let mut file = Text::default();
        for text in ["one", "other", ""] {
            std::fs::write(&path, text).unwrap();
            file.refresh(&path);
            assert_eq!(file.text, text);
        }
        std::fs::remove_file(&path).unwrap();
        file.refresh(&path);
        assert_eq!((file.text.as_str(), file.seen), ("", None));
    }

    #[test]
    fn a_fifo_in_the_files_place_does_not_block() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("passwd");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert_eq!(
            read_bounded(&path).unwrap_err().kind(),
            io::ErrorKind::InvalidInput
        );
    }

    proptest! {
        #[test]
        fn no_file_makes_it_panic_or_give_the_kernels_none(
            passwd in "([a-z:0-9\n]|\\PC){0,200}", group in "([a-z:0-9,\n]|\\PC){0,200}", user in "[a-z0-9]{0,6}",
        ) {
            if let Some(identity) = accounts(&passwd, &group).resolve(Some(&user)) {
                prop_assert!(identity.uid != u32::MAX && identity.gid != u32::MAX);
                prop_assert!(identity.groups.len() <= MAX_GROUPS);
            }
        }
    }
}
