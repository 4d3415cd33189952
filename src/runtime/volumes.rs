//! What the OCI runtime's wrapper says of volumes: podman hands nothing of it on but an exit code and a version's text. Pure.
//!
//! The other side of both is `packaging/libexec/casemate-runsc`.

use super::RuntimeError;
use super::libpod::CallError;

/// What our OCI runtime takes for an order to mount volumes.
pub(super) const ATTACH_SIGNAL: u8 = 62;

/// What its exit codes mean.
const MEANINGS: [(u8, &str); 6] = [
    (
        71,
        "fuse2fs or e2fsck is missing; install fuse2fs and e2fsprogs",
    ),
    (
        72,
        "podman's user cannot open /dev/fuse; chmod 0666 /dev/fuse, or load the module fuse",
    ),
    (73, "its file, or the room for it, is not there"),
    (
        74,
        "another process still serves it; try again when that has ended",
    ),
    (
        75,
        "its file system cannot be mended by itself; an operator looks at it with e2fsck",
    ),
    (76, "fuse2fs could not mount it"),
];

/// A refusal in our words.
pub(super) fn explain(error: CallError) -> RuntimeError {
    let CallError::Refused { doing, message, .. } = &error else {
        return error.into();
    };
    let code = message
        .rsplit_once("exit status ")
        .map(|(_, code)| code.trim());
    let code = code.and_then(|code| code.parse::<u8>().ok());
    let meaning = MEANINGS.iter().find(|(known, _)| Some(*known) == code);
    match meaning {
        Some((_, meaning)) => RuntimeError::Failed {
            doing,
            message: (*meaning).to_owned(),
        },
        None => error.into(),
    }
}

/// Why volumes cannot be mounted, by the version's text: a line `volumes: yes`, or one that says what is missing.
pub(super) fn problem(version: &str) -> Option<String> {
    let said = version
        .lines()
        .find_map(|line| line.strip_prefix("volumes: "));
    let (what, mend) = match said {
        Some("yes") => return None,
        Some("no /dev/fuse") => (
            "podman's user cannot open /dev/fuse",
            "load the module fuse, and let that user read and write the device",
        ),
        Some(_) => (
            "fuse2fs or e2fsck is missing",
            "install fuse2fs and e2fsprogs",
        ),
        None => (
            "the OCI runtime says nothing of volumes",
            "install the package casemate again",
        ),
    };
    Some(format!("{what}; {mend}, then start casemated again"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(message: &str) -> RuntimeError {
        explain(CallError::Refused {
            doing: "attach volumes",
            status: http::StatusCode::INTERNAL_SERVER_ERROR,
            message: message.to_owned(),
        })
    }

    #[test]
    fn an_exit_code_is_told_in_words_and_another_refusal_as_it_is() {
        let said =
            "sending signal to container 00: `casemate-runsc kill 00 62` failed: exit status 74";
        match refused(said) {
            RuntimeError::Failed { message, .. } => {
                assert!(message.starts_with("another process"), "{message}");
            }
            other => panic!("{other:?}"),
        }
        for other in [
            "can only kill running containers",
            "exit status 1",
            "exit status 74 or so",
        ] {
            match refused(other) {
                RuntimeError::Failed { message, .. } => assert_eq!(message, other),
                failed => panic!("{failed:?}"),
            }
        }
    }

    #[test]
    fn what_is_missing_is_said_with_what_to_install() {
        assert_eq!(problem("runsc version 1\nvolumes: yes"), None);
        let cases = [
            ("runsc version 1\nvolumes: no fuse2fs", "install fuse2fs"),
            ("runsc version 1\nvolumes: no /dev/fuse", "module fuse"),
            ("runsc version 1", "install the package"),
        ];
        for (version, says) in cases {
            let problem = problem(version).unwrap();
            assert!(problem.contains(says), "{problem}");
        }
    }
}
