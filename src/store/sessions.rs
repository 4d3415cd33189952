//! Rows of `sessions`, and the record of phase changes that is written with them.

use rusqlite::{Connection, OptionalExtension, Row, ToSql, params};

use super::veil::Veiled;
use super::{Durability, Store, StoreError, audit, volumes};
use crate::base::clock::Timestamp;
use crate::base::id::SessionId;
use crate::model::event::AuditRecord;
use crate::model::lease::{Lease, OnTimeout};
use crate::model::name::Name;
use crate::model::query::SessionFilter;
use crate::model::sandbox::{Limits, SandboxId};
use crate::model::session::{Phase, Reason, Session, SessionSpec, Status};
use crate::model::volume::Holder;

/// A client's promise that a repeated request is the same request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Idempotency {
    /// What the client calls the request.
    pub key: String,
    /// Digest of the request's body.
    pub request: [u8; 32],
    /// Repeats are recognised if the first came after this instant.
    pub since: Timestamp,
}

/// What became of a new session.
#[derive(Clone, Debug, PartialEq)]
pub enum Admission {
    /// It is recorded.
    Admitted,
    /// The same request came before; this is what it made.
    Repeated(Box<Session>),
    /// Another request came before under the same idempotency key.
    KeyReused,
    /// A live session of the team has the name.
    NameTaken,
    /// So many sessions are live already.
    Full,
    /// The team has no volume of this name.
    NoVolume(Name),
    /// A session that lives has the volume of this name, and one of the two wants to write.
    VolumeHeld(Name, Holder),
}

const COLUMNS: &str = "id, name, team, template, image, created_by, labels, env, workdir, \
    memory_bytes, cpus, pids, disk_bytes, allow_root, timeout_s, phase, reason, message, generation, sandbox, \
    created_at, ready_at, ends_at, ended_at, max_timeout_s, idle_timeout_s, on_timeout, active_at, paused_at, \
    template_version, setup, open_files, processes_started, volumes, egress";

impl Store {
    /// Records a new session together with the audit record that announces it, unless it must not
    /// be. Both are written or neither.
    ///
    /// # Errors
    /// [`StoreError`]; then nothing is recorded.
    pub async fn admit_session(
        &self,
        session: Session,
        announcement: AuditRecord,
        max_live: u32,
        idempotency: Option<Idempotency>,
    ) -> Result<Admission, StoreError> {
        self.check_room()?;
        let env = self.veiled.env(&session)?;
        let veiled = self.veiled.clone();
        self.writer
            .call("record a session", Durability::Process, move |db| {
                let session = Sealed { session, env };
                admit(
                    db,
                    &veiled,
                    &session,
                    &announcement,
                    max_live,
                    idempotency.as_ref(),
                )
            })
            .await
    }

    /// Keeps where a session stands, its container and its times, together with the audit records of
    /// the change.
    ///
    /// # Errors
    /// [`StoreError`]; then the old state stands.
    pub async fn update_session(
        &self,
        session: Session,
        changes: Vec<AuditRecord>,
    ) -> Result<(), StoreError> {
        let doing = "keep the state of a session";
        self.writer
            .call(doing, Durability::Process, move |db| {
                for change in &changes {
                    audit::insert(db, change)?;
                }
                db.prepare_cached(
                    "UPDATE sessions SET phase = ?2, reason = ?3, message = ?4, generation = ?5,
                        sandbox = ?6, ready_at = ?7, ends_at = ?8, ended_at = ?9, labels = ?10,
                        idle_timeout_s = ?11, on_timeout = ?12, active_at = ?13, paused_at = ?14,
                        egress = ?15, env = CASE WHEN ?9 IS NULL THEN env ELSE '{}' END
                     WHERE id = ?1",
                )
                .and_then(|mut statement| {
                    statement.execute(params![
                        session.id.to_string(),
                        session.status.phase.as_str(),
                        session.status.reason.map(Reason::as_str),
                        session.status.message,
                        session.status.generation,
                        session.sandbox.as_ref().map(SandboxId::as_str),
                        session.ready_at.map(Timestamp::as_millis),
                        session.lease.ends_at.as_millis(),
                        session.ended_at.map(Timestamp::as_millis),
                        serde_json::json!(session.spec.labels).to_string(),
                        session.lease.idle_timeout_s,
                        session.lease.on_timeout.as_str(),
                        session.lease.active_at.map(Timestamp::as_millis),
                        session.lease.paused_at.map(Timestamp::as_millis),
                        serde_json::json!(session.spec.egress).to_string(),
                    ])
                })
                .map(drop)
                .map_err(StoreError::sql(doing))
            })
            .await
    }

    /// One session, whatever its phase.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn session(&self, id: SessionId) -> Result<Option<Session>, StoreError> {
        let veiled = self.veiled.clone();
        self.readers
            .call("look up a session", move |db| find(db, &veiled, id))
            .await
    }

    /// Every session that has not ended, oldest first.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn live_sessions(&self) -> Result<Vec<Session>, StoreError> {
        let veiled = self.veiled.clone();
        self.readers
            .call("list the live sessions", move |db| {
                select(db, &veiled, "ended_at IS NULL ORDER BY seq", &[])
            })
            .await
    }

    /// Sessions, newest first.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn sessions(&self, filter: SessionFilter) -> Result<Vec<Session>, StoreError> {
        let veiled = self.veiled.clone();
        self.readers
            .call("list sessions", move |db| {
                let mut clauses = vec!["1".to_owned()];
                let mut values: Vec<Box<dyn ToSql>> = Vec::new();
                let mut clause = |text: &str, value: Box<dyn ToSql>| {
                    values.push(value);
                    clauses.push(text.replace('?', &format!("?{}", values.len())));
                };
                if let Some(team) = &filter.team {
                    clause("team = ?", Box::new(team.as_str().to_owned()));
                }
                if let Some(name) = &filter.name {
                    clause("name = ?", Box::new(name.as_str().to_owned()));
                }
                if let Some(before) = filter.before {
                    clause(
                        "seq < (SELECT seq FROM sessions WHERE id = ?)",
                        Box::new(before.to_string()),
                    );
                }
                if !filter.phases.is_empty() {
                    let phases: Vec<_> = filter.phases.iter().map(|p| p.as_str()).collect();
                    let list = serde_json::json!(phases).to_string();
                    clause("phase IN (SELECT value FROM json_each(?))", Box::new(list));
                }
                for (key, value) in &filter.labels {
                    let label = serde_json::json!([key, value]).to_string();
                    clause(
                        "EXISTS (SELECT 1 FROM json_each(labels) AS l, (SELECT ? AS pair) AS p
                          WHERE l.key = p.pair ->> 0 AND l.value = p.pair ->> 1)",
                        Box::new(label),
                    );
                }
                let tail = format!(
                    "{} ORDER BY seq DESC LIMIT {}",
                    clauses.join(" AND "),
                    filter.limit
                );
                let values: Vec<&dyn ToSql> = values.iter().map(AsRef::as_ref).collect();
                select(db, &veiled, &tail, &values)
            })
            .await
    }
}

/// A session, and its environment as its row has it.
struct Sealed {
    session: Session,
    env: String,
}

fn admit(
    db: &Connection,
    veiled: &Veiled,
    sealed: &Sealed,
    announcement: &AuditRecord,
    max_live: u32,
    idempotency: Option<&Idempotency>,
) -> Result<Admission, StoreError> {
    let doing = "record a session";
    let sql = StoreError::sql(doing);
    let session = &sealed.session;
    if let Some(repeat) = idempotency {
        db.execute(
            "DELETE FROM idempotency WHERE at < ?1",
            [repeat.since.as_millis()],
        )
        .map_err(&sql)?;
        let seen: Option<(Vec<u8>, String)> = db
            .query_row(
                "SELECT request, session FROM idempotency WHERE principal = ?1 AND key = ?2",
                params![session.spec.created_by, repeat.key],
                |row| Ok((row.get(0)?, row.get(1)?)),
            )
            .optional()
            .map_err(&sql)?;
        if let Some((request, id)) = seen {
            if request != repeat.request {
                return Ok(Admission::KeyReused);
            }
            let id = id.parse().map_err(|_| bad_row(doing, "session"))?;
            let first = find(db, veiled, id)?.ok_or_else(|| bad_row(doing, "session"))?;
            return Ok(Admission::Repeated(Box::new(first)));
        }
    }
    let live: u32 = db
        .query_row(
            "SELECT count(*) FROM sessions WHERE ended_at IS NULL",
            [],
            |row| row.get(0),
        )
        .map_err(&sql)?;
    if live >= max_live {
        return Ok(Admission::Full);
    }
    if let Some(name) = &session.spec.name {
        let taken: bool = db
            .query_row(
                "SELECT EXISTS (SELECT 1 FROM sessions
                  WHERE team = ?1 AND name = ?2 AND ended_at IS NULL)",
                [session.spec.team.as_str(), name.as_str()],
                |row| row.get(0),
            )
            .map_err(&sql)?;
        if taken {
            return Ok(Admission::NameTaken);
        }
    }
    if let Some(refusal) = volumes::refusal(db, session)? {
        return Ok(refusal);
    }
    audit::insert(db, announcement)?;
    insert(db, sealed)?;
    if let Some(repeat) = idempotency {
        db.execute(
            "INSERT INTO idempotency (principal, key, request, session, at) VALUES (?1, ?2, ?3, ?4, ?5)",
            params![
                session.spec.created_by,
                repeat.key,
                repeat.request,
                session.id.to_string(),
                session.created_at.as_millis()
            ],
        )
        .map_err(&sql)?;
    }
    Ok(Admission::Admitted)
}

fn insert(db: &Connection, sealed: &Sealed) -> Result<(), StoreError> {
    let Sealed { session, env } = sealed;
    let spec = &session.spec;
    db.prepare_cached(&format!(
        "INSERT INTO sessions ({COLUMNS}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, \
         ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20, ?21, ?22, ?23, ?24, ?25, ?26, ?27, ?28, ?29, ?30, ?31, ?32, ?33, ?34, ?35)"
    ))
    .and_then(|mut statement| {
        statement.execute(params![
            session.id.to_string(),
            spec.name.as_ref().map(Name::as_str),
            spec.team.as_str(),
            spec.template.as_str(),
            spec.image.to_string(),
            spec.created_by,
            serde_json::json!(spec.labels).to_string(),
            env,
            spec.workdir,
            spec.limits.memory_bytes,
            spec.limits.cpus,
            spec.limits.pids,
            spec.limits.disk_bytes,
            spec.allow_root,
            spec.timeout_s,
            session.status.phase.as_str(),
            session.status.reason.map(Reason::as_str),
            session.status.message,
            session.status.generation,
            session.sandbox.as_ref().map(SandboxId::as_str),
            session.created_at.as_millis(),
            session.ready_at.map(Timestamp::as_millis),
            session.lease.ends_at.as_millis(),
            session.ended_at.map(Timestamp::as_millis),
            session.lease.max_timeout_s,
            session.lease.idle_timeout_s,
            session.lease.on_timeout.as_str(),
            session.lease.active_at.map(Timestamp::as_millis),
            session.lease.paused_at.map(Timestamp::as_millis),
            spec.template_version,
            serde_json::json!(spec.setup).to_string(),
            spec.limits.open_files,
            spec.limits.processes_started,
            serde_json::json!(spec.volumes).to_string(),
            serde_json::json!(spec.egress).to_string(),
        ])
    })
    .map(drop)
    .map_err(StoreError::sql("record a session"))
}

fn find(db: &Connection, veiled: &Veiled, id: SessionId) -> Result<Option<Session>, StoreError> {
    Ok(select(db, veiled, "id = ?1", &[&id.to_string()])?.pop())
}

fn select(
    db: &Connection,
    veiled: &Veiled,
    tail: &str,
    values: &[&dyn ToSql],
) -> Result<Vec<Session>, StoreError> {
    let doing = "read sessions";
    let sql = StoreError::sql(doing);
    let mut statement = db
        .prepare_cached(&format!("SELECT {COLUMNS} FROM sessions WHERE {tail}"))
        .map_err(&sql)?;
    let rows = statement
        .query_map(values, |row| Ok(read(row, veiled)))
        .map_err(&sql)?;
    rows.map(|row| row.map_err(&sql)?.map_err(|what| bad_row(doing, &what)))
        .collect()
}

fn bad_row(doing: &'static str, what: &str) -> StoreError {
    StoreError::BadRow {
        doing,
        table: "sessions",
        what: what.to_owned(),
    }
}

fn read(row: &Row<'_>, veiled: &Veiled) -> Result<Session, String> {
    fn field<T: rusqlite::types::FromSql>(row: &Row<'_>, column: &str) -> Result<T, String> {
        row.get(column).map_err(|error| error.to_string())
    }
    fn parsed<T: std::str::FromStr>(row: &Row<'_>, column: &str) -> Result<T, String> {
        field::<String>(row, column)?
            .parse()
            .map_err(|_| column.to_owned())
    }
    fn json<T: serde::de::DeserializeOwned>(row: &Row<'_>, column: &str) -> Result<T, String> {
        serde_json::from_str(&field::<String>(row, column)?).map_err(|error| error.to_string())
    }
    fn time(row: &Row<'_>, column: &str) -> Result<Option<Timestamp>, String> {
        Ok(field::<Option<i64>>(row, column)?.map(Timestamp::from_millis))
    }
    let name: Option<String> = field(row, "name")?;
    let reason: Option<String> = field(row, "reason")?;
    let sandbox: Option<String> = field(row, "sandbox")?;
    Ok(Session {
        id: parsed(row, "id")?,
        spec: SessionSpec {
            name: name
                .map(|text| text.parse().map_err(|_| "name"))
                .transpose()?,
            template: parsed(row, "template")?,
            template_version: field(row, "template_version")?,
            image: parsed(row, "image")?,
            team: parsed(row, "team")?,
            created_by: field(row, "created_by")?,
            labels: json(row, "labels")?,
            env: veiled.read_env(&field::<String>(row, "id")?, &field::<String>(row, "env")?)?,
            workdir: field(row, "workdir")?,
            limits: Limits {
                memory_bytes: field(row, "memory_bytes")?,
                cpus: field(row, "cpus")?,
                pids: field(row, "pids")?,
                disk_bytes: field(row, "disk_bytes")?,
                open_files: field(row, "open_files")?,
                processes_started: field(row, "processes_started")?,
            },
            allow_root: field(row, "allow_root")?,
            timeout_s: field(row, "timeout_s")?,
            setup: json(row, "setup")?,
            volumes: json(row, "volumes")?,
            egress: json(row, "egress")?,
        },
        status: Status {
            phase: Phase::parse(&field::<String>(row, "phase")?).ok_or("phase")?,
            reason: reason
                .map(|text| Reason::parse(&text).ok_or("reason"))
                .transpose()?,
            message: field(row, "message")?,
            generation: field(row, "generation")?,
        },
        sandbox: sandbox
            .map(|text| SandboxId::try_from(text).map_err(|_| "sandbox"))
            .transpose()?,
        created_at: time(row, "created_at")?.ok_or("created_at")?,
        ready_at: time(row, "ready_at")?,
        lease: Lease {
            ends_at: time(row, "ends_at")?.ok_or("ends_at")?,
            max_timeout_s: field(row, "max_timeout_s")?,
            idle_timeout_s: field(row, "idle_timeout_s")?,
            on_timeout: OnTimeout::parse(&field::<String>(row, "on_timeout")?)
                .ok_or("on_timeout")?,
            active_at: time(row, "active_at")?,
            paused_at: time(row, "paused_at")?,
        },
        ended_at: time(row, "ended_at")?,
    })
}

#[cfg(test)]
mod tests {
    use super::super::veil::Turned;
    use super::*;
    use crate::base::id::EventId;
    use crate::model::egress::SessionEgress;
    use crate::model::event::{AuditEvent, Stage};
    use crate::model::image::ImageDigest;
    use crate::model::setup::Setup;
    use std::collections::BTreeMap;

    fn session(millis: i64, name: Option<&str>) -> Session {
        let now = Timestamp::from_millis(millis);
        Session {
            id: SessionId::generate(now).unwrap(),
            spec: SessionSpec {
                name: name.map(|text| text.parse().unwrap()),
                template: "base".parse().unwrap(),
                template_version: 3,
                image: ImageDigest::from_bytes([7; 32]),
                team: "default".parse().unwrap(),
                created_by: "key_x".into(),
                labels: BTreeMap::from([("a.b".into(), "c\"d".into())]),
                env: BTreeMap::from([("TOKEN".into(), "hush".into())]),
                workdir: Some("/w".into()),
                limits: Limits::default(),
                allow_root: true,
                timeout_s: 60,
                setup: Setup {
                    user: Some("u".into()),
                    ports: vec![8000],
                    ..Setup::default()
                },
                volumes: Vec::new(),
                egress: SessionEgress {
                    is_operators: true,
                    own: Some(BTreeMap::new()),
                    ..SessionEgress::default()
                },
            },
            status: Status {
                phase: Phase::Pending,
                reason: None,
                message: None,
                generation: 1,
            },
            sandbox: None,
            created_at: now,
            ready_at: None,
            lease: Lease {
                ends_at: now,
                max_timeout_s: 3600,
                idle_timeout_s: Some(30),
                on_timeout: OnTimeout::Pause,
                active_at: None,
                paused_at: None,
            },
            ended_at: None,
        }
    }

    fn record() -> AuditRecord {
        let now = Timestamp::from_millis(1);
        AuditRecord {
            id: EventId::generate(now).unwrap(),
            at: now,
            stage: Stage::Intent,
            intent: None,
            principal: "key_x".into(),
            session: None,
            event: AuditEvent::SessionDelete {},
            outcome: None,
        }
    }

    fn store() -> (tempfile::TempDir, Store) {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(&directory.path().join("state.db")).unwrap();
        store.draw_veil(Box::new(Turned));
        (directory, store)
    }

    async fn admit(store: &Store, session: &Session) -> Admission {
        store
            .admit_session(session.clone(), record(), 10, None)
            .await
            .unwrap()
    }

    #[tokio::test]
    async fn a_session_reads_back_as_it_was_written() {
        let (_directory, store) = store();
        let mut session = session(1_000, Some("n"));
        assert_eq!(admit(&store, &session).await, Admission::Admitted);
        assert_eq!(
            store.session(session.id).await.unwrap(),
            Some(session.clone())
        );
        session.status = Status {
            phase: Phase::Ready,
            reason: Some(Reason::Client),
            message: Some("m".into()),
            generation: 2,
        };
        session.sandbox = Some(SandboxId::try_from("0".repeat(64)).unwrap());
        session.ready_at = Some(Timestamp::from_millis(3));
        store
            .update_session(session.clone(), vec![record()])
            .await
            .unwrap();
        assert_eq!(store.session(session.id).await.unwrap(), Some(session));
    }

    #[tokio::test]
    async fn an_environment_is_never_in_the_file_and_never_another_sessions() {
        let (directory, store) = store();
        let session = session(1_000, None);
        assert_eq!(admit(&store, &session).await, Admission::Admitted);
        let path = directory.path().join("state.db");
        let stranger = Connection::open(&path).unwrap();
        let rows =
            |query: &str| -> String { stranger.query_row(query, [], |row| row.get(0)).unwrap() };
        let env = rows("SELECT env FROM sessions");
        assert!(env.starts_with('"') && !env.contains("hush"), "{env}");
        for file in ["state.db", "state.db-wal"] {
            let bytes = std::fs::read(directory.path().join(file)).unwrap();
            assert!(!bytes.windows(4).any(|window| window == b"hush"), "{file}");
        }
        // Without the veil, and in another's place, it is not read as an empty one.
        let bare = Store::open(&path).unwrap();
        let refused = bare.live_sessions().await.unwrap_err();
        assert!(refused.to_string().contains("env"), "{refused}");
        let other = SessionId::from_bytes([9; 16]).to_string();
        stranger
            .execute("UPDATE sessions SET id = ?1", [other])
            .unwrap();
        assert!(store.live_sessions().await.is_err());
        // Nor is one written without it.
        let admitted = bare.admit_session(self::session(2_000, None), record(), 10, None);
        assert!(admitted.await.is_err());
        // What a version wrote that sealed nothing is read.
        stranger
            .execute(r#"UPDATE sessions SET env = '{"A":"b"}'"#, [])
            .unwrap();
        let read = store.live_sessions().await.unwrap();
        assert_eq!(read[0].spec.env, [("A".into(), "b".into())].into());
    }

    #[tokio::test]
    async fn a_name_belongs_to_one_live_session_and_is_given_back() {
        let (_directory, store) = store();
        let mut first = session(1_000, Some("n"));
        assert_eq!(admit(&store, &first).await, Admission::Admitted);
        let second = session(2_000, Some("n"));
        assert_eq!(admit(&store, &second).await, Admission::NameTaken);
        first.ended_at = Some(Timestamp::from_millis(3));
        store
            .update_session(first.clone(), Vec::new())
            .await
            .unwrap();
        assert_eq!(admit(&store, &second).await, Admission::Admitted);
        let kept = store.session(first.id).await.unwrap().unwrap();
        assert!(
            kept.spec.env.is_empty(),
            "an ended session's environment is forgotten"
        );
    }

    #[tokio::test]
    async fn a_refused_session_leaves_no_record() {
        let (_directory, store) = store();
        admit(&store, &session(1_000, Some("n"))).await;
        admit(&store, &session(2_000, Some("n"))).await;
        let records = store
            .audit(crate::model::query::AuditFilter {
                limit: 10,
                ..Default::default()
            })
            .await
            .unwrap();
        assert_eq!(records.len(), 1);
    }

    #[tokio::test]
    async fn a_repeated_request_is_recognised_for_as_long_as_asked() {
        let (_directory, store) = store();
        let repeat = |request: u8, since| {
            Some(Idempotency {
                key: "k".into(),
                request: [request; 32],
                since: Timestamp::from_millis(since),
            })
        };
        let first = session(1_000, None);
        let admit =
            |session: &Session, repeat| store.admit_session(session.clone(), record(), 10, repeat);
        assert_eq!(
            admit(&first, repeat(1, 0)).await.unwrap(),
            Admission::Admitted
        );
        let second = session(2_000, None);
        assert_eq!(
            admit(&second, repeat(1, 0)).await.unwrap(),
            Admission::Repeated(Box::new(first))
        );
        assert_eq!(
            admit(&second, repeat(2, 0)).await.unwrap(),
            Admission::KeyReused
        );
        assert_eq!(
            admit(&second, repeat(2, 1_500)).await.unwrap(),
            Admission::Admitted
        );
    }

    #[tokio::test]
    async fn lists_newest_first_by_page_phase_name_and_label() {
        let (_directory, store) = store();
        // In one millisecond: the order is that of admission.
        let sessions: Vec<_> = (0..3).map(|_| session(1_000, None)).collect();
        for session in &sessions {
            admit(&store, session).await;
        }
        let ids = |filter: SessionFilter| async {
            let found = store.sessions(filter).await.unwrap();
            found.into_iter().map(|s| s.id).collect::<Vec<_>>()
        };
        let all = SessionFilter {
            limit: 10,
            ..Default::default()
        };
        assert_eq!(
            ids(all.clone()).await,
            [sessions[2].id, sessions[1].id, sessions[0].id]
        );
        let page = SessionFilter {
            before: Some(sessions[2].id),
            limit: 1,
            ..all.clone()
        };
        assert_eq!(ids(page).await, [sessions[1].id]);
        let labelled = |value: &str| SessionFilter {
            labels: vec![("a.b".into(), value.into())],
            ..all.clone()
        };
        assert_eq!(ids(labelled("c\"d")).await.len(), 3);
        assert_eq!(ids(labelled("c")).await.len(), 0);
        let ready = SessionFilter {
            phases: vec![Phase::Ready],
            ..all.clone()
        };
        assert_eq!(ids(ready).await.len(), 0);
        let other = SessionFilter {
            team: Some("other".parse().unwrap()),
            ..all
        };
        assert_eq!(ids(other).await.len(), 0);
    }

    #[tokio::test]
    async fn past_the_bound_no_session_is_admitted() {
        let (_directory, store) = store();
        let answer = store
            .admit_session(session(1, None), record(), 0, None)
            .await
            .unwrap();
        assert_eq!(answer, Admission::Full);
    }

    #[tokio::test]
    async fn concurrent_writes_are_all_there() {
        let (directory, store) = store();
        let writes = (0..200).map(|_| store.append_audit(record(), Durability::Process));
        let positions = futures_util::future::try_join_all(writes).await.unwrap();
        assert_eq!(positions.len(), 200);
        store.close().await;
        let store = Store::open(&directory.path().join("state.db")).unwrap();
        let filter = crate::model::query::AuditFilter {
            limit: 1000,
            ..Default::default()
        };
        assert_eq!(store.audit(filter).await.unwrap().len(), 200);
    }
}
