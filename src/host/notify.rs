//! Tells the service manager how we are (`sd_notify(3)`); without one, does nothing.
//!
//! A notification that cannot be sent is a line in the log and no more: the service manager has
//! deadlines of its own, and a daemon that ends because nobody listens helps nobody.

use std::time::Duration;

use sd_notify::NotifyState;

/// The way to the service manager. Costs nothing to copy.
#[derive(Clone, Copy, Debug)]
pub struct Notifier {
    active: bool,
}

/// Longest status line, in bytes: it is for one row of `systemctl status`.
const MAX_STATUS_BYTES: usize = 256;

impl Notifier {
    /// Finds the service manager by `NOTIFY_SOCKET`.
    #[must_use]
    pub fn from_env() -> Self {
        Self {
            active: std::env::var_os("NOTIFY_SOCKET").is_some(),
        }
    }

    /// One that tells nobody.
    #[must_use]
    pub const fn silent() -> Self {
        Self { active: false }
    }

    /// Whether somebody listens.
    #[must_use]
    pub const fn is_active(self) -> bool {
        self.active
    }

    /// `READY=1`: serving, or done with a reload.
    pub fn ready(self, status: &str) {
        self.send(&[NotifyState::Ready, NotifyState::Status(&one_line(status))]);
    }

    /// `EXTEND_TIMEOUT_USEC=`: the start goes on, and may take so long from now on. Why, in one sentence.
    pub fn starting(self, status: &str, within: Duration) {
        // The most that it can say is an hour and more.
        let microseconds = u32::try_from(within.as_micros()).unwrap_or(u32::MAX);
        self.send(&[
            NotifyState::ExtendTimeoutUsec(microseconds),
            NotifyState::Status(&one_line(status)),
        ]);
    }

    /// `STATUS=`: one sentence that an operator wants, for example `ready, 12 of 64 sessions`.
    pub fn status(self, status: &str) {
        self.send(&[NotifyState::Status(&one_line(status))]);
    }

    /// `RELOADING=1` with the monotonic time, which `Type=notify-reload` asks for (systemd 253).
    /// [`Notifier::ready`] must follow, also when the reload was refused.
    pub fn reloading(self) {
        match NotifyState::monotonic_usec_now() {
            Ok(now) => self.send(&[NotifyState::Reloading, now]),
            Err(error) => tracing::warn!(%error, "cannot read the monotonic clock"),
        }
    }

    /// `STOPPING=1`.
    pub fn stopping(self, status: &str) {
        self.send(&[
            NotifyState::Stopping,
            NotifyState::Status(&one_line(status)),
        ]);
    }

    /// `WATCHDOG=1`: still alive. Due at least every [`Notifier::watchdog_interval`].
    pub fn watchdog(self) {
        self.send(&[NotifyState::Watchdog]);
    }

    /// How often to call [`Notifier::watchdog`]: half of what the unit's `WatchdogSec` allows, as
    /// `sd_watchdog_enabled(3)` recommends. `None` when the unit asks for none.
    #[must_use]
    pub fn watchdog_interval(self) -> Option<Duration> {
        sd_notify::watchdog_enabled()
            .filter(|allowed| self.active && !allowed.is_zero())
            .map(|allowed| allowed / 2)
    }

    fn send(self, states: &[NotifyState<'_>]) {
        if !self.active {
            return;
        }
        if let Err(error) = sd_notify::notify(states) {
            tracing::warn!(%error, "cannot tell the service manager");
        }
    }
}

/// The text as one line: each line of a notification is an assignment of its own.
fn one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len().min(MAX_STATUS_BYTES));
    for c in text.chars() {
        let c = if c.is_control() { ' ' } else { c };
        if line.len() + c.len_utf8() > MAX_STATUS_BYTES {
            break;
        }
        line.push(c);
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::child;
    use std::os::unix::net::UnixDatagram;

    #[test]
    fn a_status_cannot_forge_another_assignment() {
        assert_eq!(one_line("fine\nMAINPID=1"), "fine MAINPID=1");
        assert_eq!(one_line(&"é".repeat(300)).len(), MAX_STATUS_BYTES);
    }

    #[test]
    fn without_a_service_manager_it_is_silent() {
        let notifier = Notifier::silent();
        notifier.ready("x");
        notifier.watchdog();
        assert_eq!(notifier.watchdog_interval(), None);
    }

    #[test]
    fn says_what_systemd_expects() {
        if child::is_child() {
            let notifier = Notifier::from_env();
            assert_eq!(
                notifier.watchdog_interval(),
                Some(Duration::from_millis(1500))
            );
            notifier.ready("ready, 0 of 64 sessions");
            notifier.reloading();
            notifier.watchdog();
            notifier.stopping("draining");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        child::run(
            "host::notify::tests::says_what_systemd_expects",
            &[
                ("NOTIFY_SOCKET", path.to_str().unwrap()),
                ("WATCHDOG_USEC", "3000000"),
            ],
        );
        let mut buffer = [0_u8; 512];
        let mut next = || {
            let length = socket.recv(&mut buffer).unwrap();
            String::from_utf8(buffer[..length].to_vec()).unwrap()
        };
        assert_eq!(next(), "READY=1\nSTATUS=ready, 0 of 64 sessions\n");
        assert!(next().starts_with("RELOADING=1\nMONOTONIC_USEC="));
        assert_eq!(next(), "WATCHDOG=1\n");
        assert_eq!(next(), "STOPPING=1\nSTATUS=draining\n");
    }
}
