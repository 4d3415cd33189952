//! What the guest sees of the kernel it runs on.

use std::sync::OnceLock;

use casemate_link::handshake::KernelReport;
use casemate_link::limits::MAX_BANNER_BYTES;
use nix::sys::utsname::uname;

use crate::sys;

/// Bytes of the log that are asked for: gVisor's whole log is shorter.
const LOG_BYTES: usize = 16 * 1024;

/// Lines of the log that are told.
const BANNER_LINES: usize = 2;

/// Whether this is gVisor, which leaves out some of what Linux does. Looked up once.
pub(crate) fn is_gvisor() -> bool {
    static IS_GVISOR: OnceLock<bool> = OnceLock::new();
    *IS_GVISOR.get_or_init(|| report().banner.contains("gVisor"))
}

/// Reads the report. What cannot be read is empty.
pub(crate) fn report() -> KernelReport {
    let mut report = KernelReport::default();
    if let Ok(name) = uname() {
        report.release = name.release().to_string_lossy().into_owned();
        report.version = name.version().to_string_lossy().into_owned();
    }
    let mut log = vec![0; LOG_BYTES];
    let read = sys::read_kernel_log(&mut log).unwrap_or(0);
    report.banner = banner(log.get(..read).unwrap_or_default());
    report
}

/// The first lines of a log, in printable characters, within [`MAX_BANNER_BYTES`].
fn banner(log: &[u8]) -> String {
    let log = String::from_utf8_lossy(log);
    let lines: Vec<&str> = log.lines().take(BANNER_LINES).collect();
    let text = lines.join("\n");
    // A character takes up to four bytes, so this many always fit.
    let shown = text.chars().take(MAX_BANNER_BYTES / 4);
    shown.filter(|c| !c.is_control() || *c == '\n').collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_banner_is_the_first_lines() {
        let log =
            b"<6>[    0.000000] Starting gVisor...\n<6>[    0.5] Feeding the init monster...\nmore";
        let expected =
            "<6>[    0.000000] Starting gVisor...\n<6>[    0.5] Feeding the init monster...";
        assert_eq!(banner(log), expected);
        assert_eq!(banner(b""), "");
        assert!(banner(&[0xff; 9000]).len() <= MAX_BANNER_BYTES);
    }

    #[test]
    fn there_is_a_release() {
        assert!(!report().release.is_empty());
    }
}
