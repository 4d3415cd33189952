//! `filesystem.Filesystem`: files of a sandbox, as E2B's clients look at them, move them and watch them.

use casemate_link::daemon::Watch;
use casemate_link::file::{
    FileChange, FileEntry, FileEvent, FileKind, ListRequest, MkdirRequest, MoveRequest as Move,
    RemoveRequest, StatRequest, WatchRequest as Watching,
};
use casemate_link::limits::{MAX_LIST_DEPTH, MAX_LISTED_FILES};
use futures_util::Stream;
use http::StatusCode;
use tokio::time::{Instant, Interval};

use super::process::{keepalive, over, until};
use super::{id, place, user};
use crate::api::e2b::connect;
use crate::api::e2b::proto::{
    Empty, EntryInfo, EntryResponse, EventType, FileType, FilesystemEvent,
    GetWatcherEventsResponse, ListDirRequest, ListDirResponse, MoveRequest, OneWatcher,
    PathRequest, Time, WatchDirResponse, WatchRequest, Watched,
};
use crate::api::error::Problem;
use crate::api::route::{Call, Reply};
use crate::app::AppError;
use crate::session::guest::failed;

/// Symbolic links of one list whose targets are looked at.
const LINKS_LOOKED_AT: usize = 256;

pub(in crate::api) async fn stat(call: &Call) -> Result<Reply, Problem> {
    connect::unary(call, async |asked: PathRequest| {
        let entry = Some(look(call, &asked.path).await?);
        Ok(EntryResponse { entry })
    })
    .await
}

pub(in crate::api) async fn list(call: &Call) -> Result<Reply, Problem> {
    connect::unary(call, async |asked: ListDirRequest| {
        let user = user(&call.headers)?;
        let request = ListRequest {
            place: place(&asked.path, user.clone()),
            depth: asked.depth.clamp(1, MAX_LIST_DEPTH),
            limit: MAX_LISTED_FILES,
        };
        let listed = call.app.list_files(call.principal()?, id(call)?, &request).await?;
        if listed.is_cut {
            let detail = format!("the directory has more than {MAX_LISTED_FILES} entries, or more than one answer holds; list fewer levels");
            return Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too_many_entries", detail));
        }
        let mut entries = Vec::with_capacity(listed.entries.len());
        let mut links = 0;
        for entry in listed.entries {
            let is_link = entry.kind == FileKind::Symlink;
            links += usize::from(is_link);
            let kind = if is_link && links <= LINKS_LOOKED_AT {
                behind(call, &entry.path, user.clone()).await?
            } else {
                entry.kind
            };
            entries.push(info(entry, kind));
        }
        Ok(ListDirResponse { entries })
    })
    .await
}

pub(in crate::api) async fn make_dir(call: &Call) -> Result<Reply, Problem> {
    connect::unary(call, async |asked: PathRequest| {
        let request = MkdirRequest {
            place: place(&asked.path, user(&call.headers)?),
            mode: None,
            parents: true,
        };
        let made = call
            .app
            .make_directory(call.principal()?, id(call)?, request)
            .await;
        let made = made.map_err(|error| match Problem::from(error) {
            problem if problem.code() == "file_exists" => {
                Problem::bad_request("there is a file in its place")
            }
            problem => problem,
        })?;
        if !made.created {
            return Err(Problem::new(
                StatusCode::CONFLICT,
                "file_exists",
                "the directory is there already",
            ));
        }
        let kind = made.entry.kind;
        let entry = Some(info(made.entry, kind));
        Ok(EntryResponse { entry })
    })
    .await
}

pub(in crate::api) async fn rename(call: &Call) -> Result<Reply, Problem> {
    connect::unary(call, async |asked: MoveRequest| {
        let to = place(&asked.destination, None).path;
        let request = Move {
            place: place(&asked.source, user(&call.headers)?),
            to,
            overwrite: true,
            create_parents: true,
        };
        let entry = call
            .app
            .move_file(call.principal()?, id(call)?, request)
            .await?;
        let kind = entry.kind;
        let entry = Some(info(entry, kind));
        Ok(EntryResponse { entry })
    })
    .await
}

pub(in crate::api) async fn remove(call: &Call) -> Result<Reply, Problem> {
    connect::unary(call, async |asked: PathRequest| {
        let request = RemoveRequest {
            place: place(&asked.path, user(&call.headers)?),
            recursive: true,
        };
        match call
            .app
            .remove_file(call.principal()?, id(call)?, request)
            .await
        {
            Ok(()) => Ok(Empty {}),
            Err(error) => {
                let problem = Problem::from(error);
                // What is not there needs no removing.
                if problem.code() == "file_not_found" {
                    Ok(Empty {})
                } else {
                    Err(problem)
                }
            }
        }
    })
    .await
}

pub(in crate::api) async fn watch(call: &Call) -> Result<Reply, Problem> {
    let asked: WatchRequest = connect::asked(call).await?;
    let deadline = connect::timeout(&call.headers)?.map(|after| Instant::now() + after);
    let wants_entries = asked.include_entry;
    let (root, user) = (asked.path.clone(), user(&call.headers)?);
    let (principal, id) = (call.principal()?.clone(), id(call)?);
    let (watch, using) = open(call, asked).await?;
    let looking = Looking {
        app: call.app.clone(),
        principal,
        session: id,
        user,
        root,
        wants_entries,
    };
    let telling = Telling {
        watch,
        _using: using,
        looking,
        ready: vec![Watched::Start(Empty {})],
        keepalive: keepalive(&call.headers),
        deadline,
        ended: false,
    };
    connect::stream(call, telling.told())
}

pub(in crate::api) async fn create_watcher(call: &Call) -> Result<Reply, Problem> {
    connect::unary(call, async |asked: WatchRequest| {
        let looking = Looking {
            app: call.app.clone(),
            principal: call.principal()?.clone(),
            session: id(call)?,
            user: user(&call.headers)?,
            root: asked.path.clone(),
            wants_entries: asked.include_entry,
        };
        // A watcher that is not asked is no use of the session: only a stream is.
        let (watch, _using) = open(call, asked).await?;
        let watcher_id = call.watchers.add(watch, looking)?;
        Ok(OneWatcher { watcher_id })
    })
    .await
}

pub(in crate::api) async fn watcher_events(call: &Call) -> Result<Reply, Problem> {
    connect::unary(call, async |asked: OneWatcher| {
        let (happened, looking) = call.watchers.take(id(call)?, &asked.watcher_id)?;
        let mut events = Vec::new();
        for event in happened {
            events.extend(looking.told(event).await);
        }
        Ok(GetWatcherEventsResponse { events })
    })
    .await
}

pub(in crate::api) async fn remove_watcher(call: &Call) -> Result<Reply, Problem> {
    connect::unary(call, async |asked: OneWatcher| {
        call.watchers.remove(id(call)?, &asked.watcher_id)?;
        Ok(Empty {})
    })
    .await
}

type Using = std::sync::Arc<crate::session::activity::Use>;

async fn open(call: &Call, asked: WatchRequest) -> Result<(Watch, Using), Problem> {
    let user = user(&call.headers)?;
    let (principal, id) = (call.principal()?, id(call)?);
    let what = StatRequest {
        place: place(&asked.path, user.clone()),
        follow: true,
    };
    let entry = call.app.stat_file(principal, id, &what).await?;
    if entry.kind != FileKind::Directory {
        let detail = "this is not a directory, and only those are watched";
        return Err(Problem::new(
            StatusCode::CONFLICT,
            "wrong_file_kind",
            detail,
        ));
    }
    let request = Watching {
        place: place(&asked.path, user),
        recursive: asked.recursive,
    };
    Ok(call.app.watch_files(principal, id, &request).await?)
}

/// What is known of a path. A symbolic link is told as one, with the kind of what it leads to.
async fn look(call: &Call, path: &str) -> Result<EntryInfo, Problem> {
    let user = user(&call.headers)?;
    let request = StatRequest {
        place: place(path, user.clone()),
        follow: false,
    };
    let entry = call
        .app
        .stat_file(call.principal()?, id(call)?, &request)
        .await?;
    let kind = if entry.kind == FileKind::Symlink {
        behind(call, path, user).await?
    } else {
        entry.kind
    };
    Ok(info(entry, kind))
}

/// The kind of what a symbolic link leads to; a link that leads nowhere is one.
async fn behind(call: &Call, path: &str, user: Option<String>) -> Result<FileKind, Problem> {
    let request = StatRequest {
        place: place(path, user),
        follow: true,
    };
    let found = call
        .app
        .stat_file(call.principal()?, id(call)?, &request)
        .await;
    Ok(found.map_or(FileKind::Symlink, |entry| entry.kind))
}

/// A file, in E2B's words.
pub(super) fn info(entry: FileEntry, kind: FileKind) -> EntryInfo {
    let name = entry.path.trim_end_matches('/').rsplit('/').next();
    let is_symlink = entry.kind == FileKind::Symlink;
    EntryInfo {
        name: name.unwrap_or_default().to_owned(),
        r#type: match kind {
            FileKind::File | FileKind::Other => FileType::FileTypeFile,
            FileKind::Directory => FileType::FileTypeDirectory,
            FileKind::Symlink => FileType::FileTypeSymlink,
        }
        .into(),
        size: i64::try_from(entry.size_bytes).unwrap_or(i64::MAX),
        mode: entry.mode & 0o7777,
        permissions: permissions(entry.kind, entry.mode),
        owner: entry.owner.unwrap_or_else(|| entry.uid.to_string()),
        group: entry.group.unwrap_or_else(|| entry.gid.to_string()),
        modified_time: Some(Time::from_millis(entry.modified_ms)),
        symlink_target: entry.target.map(|target| absolute(&entry.path, &target)),
        metadata: entry.metadata,
        is_symlink,
        path: entry.path,
    }
}

/// Where the symbolic link at `path` leads, as an absolute path without detours.
fn absolute(path: &str, target: &str) -> String {
    let parent = path.rsplit_once('/').map_or("", |(parent, _)| parent);
    let mut steps: Vec<&str> = Vec::new();
    let from = if target.starts_with('/') { "" } else { parent };
    for step in from.split('/').chain(target.split('/')) {
        match step {
            "" | "." => {}
            ".." => {
                steps.pop();
            }
            step => steps.push(step),
        }
    }
    format!("/{}", steps.join("/"))
}

/// As `ls -l` writes them.
fn permissions(kind: FileKind, mode: u32) -> String {
    let mut text = String::from(match kind {
        FileKind::Directory => "d",
        FileKind::Symlink => "L",
        FileKind::File | FileKind::Other => "-",
    });
    for (at, letter) in "rwxrwxrwx".chars().enumerate() {
        let bit = 0o400 >> at;
        text.push(if mode & bit == 0 { '-' } else { letter });
    }
    text
}

/// What looks at the files that events are about.
#[derive(Clone)]
pub(in crate::api) struct Looking {
    app: crate::app::App,
    principal: crate::model::principal::Principal,
    pub(super) session: crate::base::id::SessionId,
    user: Option<String>,
    root: String,
    wants_entries: bool,
}

impl Looking {
    /// Whether the session lives.
    pub(super) fn is_live(&self) -> bool {
        self.app.is_live(self.session)
    }

    /// An event, in E2B's words: what has another name is gone from one and new at the other.
    async fn told(&self, event: FileEvent) -> Vec<FilesystemEvent> {
        let kind = match event.change {
            FileChange::Create => EventType::EventTypeCreate,
            FileChange::Write => EventType::EventTypeWrite,
            FileChange::Remove => EventType::EventTypeRemove,
            FileChange::Rename => EventType::EventTypeRename,
            FileChange::Chmod => EventType::EventTypeChmod,
            // There is no word for it, and what is there can be looked at.
            FileChange::Overflow => return Vec::new(),
        };
        let mut told = vec![self.one(event.path, kind).await];
        if let Some(to) = event.to {
            told.push(self.one(to, EventType::EventTypeCreate).await);
        }
        told
    }

    async fn one(&self, name: String, kind: EventType) -> FilesystemEvent {
        let is_there = !matches!(
            kind,
            EventType::EventTypeRemove | EventType::EventTypeRename
        );
        let entry = if self.wants_entries && is_there {
            let request = StatRequest {
                place: place(
                    &format!("{}/{name}", self.root.trim_end_matches('/')),
                    self.user.clone(),
                ),
                follow: false,
            };
            // It may be gone by now.
            let found = self
                .app
                .stat_file(&self.principal, self.session, &request)
                .await
                .ok();
            found.map(|entry| {
                let kind = entry.kind;
                info(entry, kind)
            })
        } else {
            None
        };
        FilesystemEvent {
            name,
            r#type: kind.into(),
            entry,
        }
    }
}

struct Telling {
    watch: Watch,
    /// Whoever watches uses the session.
    _using: Using,
    looking: Looking,
    /// What is to be told, last first.
    ready: Vec<Watched>,
    keepalive: Interval,
    deadline: Option<Instant>,
    ended: bool,
}

impl Telling {
    fn told(self) -> impl Stream<Item = Result<WatchDirResponse, Problem>> + Send {
        futures_util::stream::unfold(self, async |mut telling| {
            let said = telling.next().await?;
            let said = said.map(|said| WatchDirResponse { event: Some(said) });
            Some((said, telling))
        })
    }

    async fn next(&mut self) -> Option<Result<Watched, Problem>> {
        loop {
            if let Some(ready) = self.ready.pop() {
                return Some(Ok(ready));
            }
            if self.ended {
                return None;
            }
            let event = tokio::select! {
                biased;
                event = self.watch.next() => event?,
                () = until(self.deadline) => {
                    self.ended = true;
                    return Some(Err(over()));
                }
                _ = self.keepalive.tick() => return Some(Ok(Watched::Keepalive(Empty {}))),
            };
            self.keepalive.reset();
            match event {
                Ok(event) => {
                    let told = self.looking.told(event).await;
                    self.ready = told.into_iter().rev().map(Watched::Filesystem).collect();
                }
                Err(error) => {
                    self.ended = true;
                    return Some(Err(AppError::Session(failed(error)).into()));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use casemate_link::file::Place;

    #[test]
    fn permissions_are_as_people_read_them() {
        assert_eq!(permissions(FileKind::File, 0o100_644), "-rw-r--r--");
        assert_eq!(permissions(FileKind::Directory, 0o755), "drwxr-xr-x");
        assert_eq!(permissions(FileKind::Symlink, 0o777), "Lrwxrwxrwx");
    }

    #[test]
    fn a_link_leads_to_an_absolute_path() {
        for (target, leads_to) in [
            ("file", "/a/b/file"),
            ("../c", "/a/c"),
            ("/etc/../x", "/x"),
            ("../../../..", "/"),
            ("./d/", "/a/b/d"),
        ] {
            assert_eq!(absolute("/a/b/link", target), leads_to, "{target}");
        }
    }

    #[test]
    fn places_may_begin_at_home() {
        for (said, meant) in [
            ("~", "."),
            ("", "."),
            ("~/a", "a"),
            ("a/b", "a/b"),
            ("/a", "/a"),
            ("~a", "~a"),
        ] {
            assert_eq!(place(said, None), Place::new(meant), "{said}");
        }
    }
}
