//! `casemate open`: a signed link to a port in a session, shown, and opened in a browser where there is a display.
//!
//! The link lets in whoever has it, and the arguments of a program are for every user of a machine to see: so the browser gets a
//! page of its user's own to open, which leads on.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use casemate::base::id::SessionId;
use clap::Args;
use http::Method;
use serde_json::{Value, json};

use super::Context;
use super::grant::seconds;
use super::which::{Which, sole, which};
use crate::failure::Failure;
use crate::http::Call;
use crate::output;

/// What opens pages with the browser that its user prefers, from wherever `PATH` has it.
const OPENER: &str = "xdg-open";

/// What tells that there is a display.
const DISPLAYS: [&str; 2] = ["WAYLAND_DISPLAY", "DISPLAY"];

/// Options of `casemate open`.
#[derive(Args)]
#[command(after_long_help = "\
Whoever has the link reaches the port until it ends: with its time, with the session,
or with the key that made it. A browser gets a cookie for it, and an address without it.

Where there is a display (DISPLAY or WAYLAND_DISPLAY), the link is opened in a browser
as well, by xdg-open; not with --print, nor with --json.")]
pub struct Open {
    /// Which port in the session
    #[arg(value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    port: u16,
    /// Which session, by ID or name; the team's only live one when absent
    #[arg(long, value_name = "SESSION", value_parser = which)]
    session: Option<Which>,
    /// How long the link is good, at most 24h: seconds, or with m or h; an hour when absent
    #[arg(long = "expires-in", value_name = "TIME", value_parser = seconds)]
    expires_in_s: Option<u64>,
    /// Only print the link, and start no browser
    #[arg(long)]
    print: bool,
}

impl Open {
    pub async fn execute(self, context: &Context) -> Result<(), Failure> {
        let client = context.client()?;
        let id: SessionId = sole(self.session.as_ref(), &client).await?;
        let body = match self.expires_in_s {
            Some(seconds) => json!({"expires_in_s": seconds}),
            None => json!({}),
        };
        let path = format!("/v1/sessions/{id}/links/{}", self.port);
        let call = Call::new(Method::POST, path).json(body.to_string());
        let answer = client.call(call).await?;
        let made: Value = client.read(&answer)?;
        if context.json {
            return output::json(&made);
        }
        let url = made.get("url").and_then(Value::as_str);
        let url = url.ok_or_else(Failure::mismatch)?;
        output::line(url)?;
        let is_shown = DISPLAYS
            .iter()
            .any(|name| std::env::var_os(name).is_some_and(|value| !value.is_empty()));
        if is_shown
            && !self.print
            && let Err(error) = show(url, &format!("casemate-{id}-{}.html", self.port))
        {
            output::tell(&format!("no browser was started: {error}"));
        }
        Ok(())
    }
}

/// Has the user's browser go there, and does not wait for it.
fn show(url: &str, name: &str) -> io::Result<()> {
    // It was not we who wrote the link: anything but the web would be opened by whatever the desktop has for it.
    if !url.starts_with("http://") && !url.starts_with("https://") {
        return Err(io::Error::other("the link is no address of the web"));
    }
    let directory = std::env::var_os("XDG_RUNTIME_DIR")
        .map(PathBuf::from)
        .filter(|directory| directory.is_absolute())
        .ok_or_else(|| io::Error::other("XDG_RUNTIME_DIR does not say where its page may lie"))?;
    let page = directory.join(name);
    write(&page, &leading_to(url))?;
    Command::new(OPENER)
        .arg(&page)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        // Ctrl-C at this terminal is not for the browser.
        .process_group(0)
        .spawn()
        .map(drop)
        .map_err(|error| io::Error::new(error.kind(), format!("{OPENER}: {error}")))
}

/// Writes a new file that nobody else reads; one that was there before goes. It stays, since nobody says when the browser has
/// read it; the directory does not outlive its user's sessions on the machine.
fn write(path: &Path, text: &str) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut options = OpenOptions::new();
    let mut file = options
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(text.as_bytes())
}

/// A page that leads there, and does not say from where.
fn leading_to(url: &str) -> String {
    let mut quoted = String::with_capacity(url.len());
    for character in url.chars() {
        match character {
            '&' => quoted.push_str("&amp;"),
            '<' => quoted.push_str("&lt;"),
            '>' => quoted.push_str("&gt;"),
            '"' => quoted.push_str("&quot;"),
            // In what a refresh says they would begin a quotation.
            '\'' => quoted.push_str("%27"),
            other => quoted.push(other),
        }
    }
    format!(
        "<!doctype html>\n<meta charset=\"utf-8\"><meta name=\"referrer\" content=\"no-referrer\">\n\
         <meta http-equiv=\"refresh\" content=\"0; url={quoted}\">\n<title>casemate</title>\n\
         <a href=\"{quoted}\">The port is here.</a>\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_cannot_add_to_the_page_that_leads_there() {
        let page = leading_to("http://a/?x=1&y=\"><script>alert('')</script>");
        assert!(page.contains("url=http://a/?x=1&amp;y=&quot;&gt;&lt;script&gt;alert(%27%27)"));
        assert!(!page.contains("<script"), "{page}");
    }

    #[test]
    fn what_is_no_address_of_the_web_is_not_opened() {
        for url in ["file:///etc/passwd", "javascript:1", "httpx://a", ""] {
            let said = show(url, "unwritten").unwrap_err().to_string();
            assert!(said.contains("no address of the web"), "{said}");
        }
    }

    #[test]
    fn the_page_is_its_users_alone_and_a_trap_in_its_place_is_not_followed() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        let (page, other) = (
            directory.path().join("page"),
            directory.path().join("other"),
        );
        std::fs::write(&other, "kept").unwrap();
        std::os::unix::fs::symlink(&other, &page).unwrap();
        for text in ["first", "second"] {
            write(&page, text).unwrap();
            assert_eq!(std::fs::read_to_string(&page).unwrap(), text);
            let mode = page.symlink_metadata().unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
        assert_eq!(std::fs::read_to_string(&other).unwrap(), "kept");
    }
}
