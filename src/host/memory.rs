//! How much memory the machine has left.

use std::fs;

/// Bytes that programs can still take without swapping, as the kernel estimates (`MemAvailable`, proc(5)); everything there
/// is where it does not say, because a machine that cannot be asked is not therefore full.
#[must_use]
pub fn available_bytes() -> u64 {
    let table = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    read(&table).unwrap_or(u64::MAX)
}

fn read(table: &str) -> Option<u64> {
    let line = table
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_is_found_and_counts_in_bytes() {
        let table = "MemTotal:       25276063 kB\nMemFree: 1 kB\nMemAvailable:    2048 kB\n";
        assert_eq!(read(table), Some(2048 * 1024));
        assert_eq!(read("MemTotal: 5 kB\n"), None);
        assert!(available_bytes() > 0);
    }
}
