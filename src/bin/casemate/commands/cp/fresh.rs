//! A file of this machine that is being written under a name of its own and gets the real one when it
//! is whole. What was there stays until then, and nothing is ever written through a link.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{
    AtFlags, CWD, Mode, OFlags, Timespec, Timestamps, UTIME_OMIT, fchmod, futimens, openat,
    renameat, unlinkat,
};
use rustix::io::Errno;

/// How often another name is tried.
const ATTEMPTS: u32 = 16;

/// A file that is not whole yet. Dropped, it is removed.
pub struct Fresh {
    dir: Arc<OwnedFd>,
    temporary: OsString,
    file: File,
    is_whole: bool,
}

/// Opens a directory that is known by its path, which may lead through links of this machine.
pub fn directory(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(openat(CWD, path, flags, Mode::empty())?)
}

impl Fresh {
    /// Begins a file in a directory.
    pub fn create(dir: Arc<OwnedFd>) -> io::Result<Self> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        for _ in 0..ATTEMPTS {
            let temporary = temporary_name()?;
            match openat(&*dir, &temporary, flags, Mode::RUSR | Mode::WUSR) {
                Ok(file) => {
                    return Ok(Self {
                        dir,
                        temporary,
                        file: file.into(),
                        is_whole: false,
                    });
                }
                Err(Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(Errno::EXIST.into())
    }

    /// Gives the whole file its mode, its time and its name.
    pub fn finish(mut self, name: &OsStr, mode: u32, modified: Duration) -> io::Result<()> {
        self.file.flush()?;
        settle(&self.file, mode, modified)?;
        renameat(&*self.dir, &self.temporary, &*self.dir, name)?;
        self.is_whole = true;
        Ok(())
    }
}

impl Write for Fresh {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for Fresh {
    fn drop(&mut self) {
        if !self.is_whole {
            let _ = unlinkat(&*self.dir, &self.temporary, AtFlags::empty());
        }
    }
}

/// A name that nobody else has thought of.
pub fn temporary_name() -> io::Result<OsString> {
    let chance = getrandom::u64().map_err(io::Error::other)?;
    Ok(format!(".casemate-cp-{chance:016x}").into())
}

/// Gives a file or directory its permission bits, and the time of its last change since 1970.
pub fn settle(file: impl AsFd, mode: u32, modified: Duration) -> io::Result<()> {
    fchmod(&file, Mode::from_raw_mode(mode & 0o777))?;
    let times = Timestamps {
        last_access: Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_OMIT,
        },
        last_modification: Timespec {
            tv_sec: i64::try_from(modified.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: modified.subsec_nanos().into(),
        },
    };
    futimens(&file, &times)?;
    Ok(())
}
