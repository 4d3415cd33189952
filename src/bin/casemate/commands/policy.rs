//! `casemate policy …`: what the operator allows and denies, and why something would be decided as it would.

use std::path::{Path, PathBuf};

use casemate::admin::protocol::{self, Action, Answer, NamedRule, Request, Rule, RuleOrigin, Whom};
use casemate::base::clock::Timestamp;
use casemate::base::exit::Exit;
use casemate::base::id::{KeyId, SessionId};
use casemate::model::egress::Scheme;
use casemate::model::grant::{Role, Scope};
use casemate::model::name::Name;
use clap::{Args, Subcommand};

use super::Context;
use super::grant::narrowed;
use crate::failure::Failure;
use crate::output::{self, tell};

/// Longest rule that is read, in bytes.
const MAX_RULE_BYTES: u64 = 1 << 20;

/// What to do with the policy.
#[derive(Subcommand)]
pub enum Command {
    /// List the operator's rules, those of files and those of the store
    List,
    /// Keep a rule in the store, in place of one of that name; it holds at once
    Put {
        /// Its name
        name: Name,
        /// What it says, as JSON; docs/access.md shows some; - reads standard input
        file: PathBuf,
    },
    /// Remove a rule of the store
    Rm {
        /// Which
        name: Name,
    },
    /// Say whether somebody may do something, which rule decides, and why the others do not
    Explain(Box<Explain>),
    /// Say whether a session may reach something outside, and which rule decides
    Reach(Reach),
}

/// Options of `casemate policy reach`.
#[derive(Args)]
pub struct Reach {
    /// Which session
    session: SessionId,
    #[arg(
        help = "What, as in https://example.org, http://example.org:8080/v1 or tcp://10.0.0.7:5432"
    )]
    url: String,
    /// With which method; of http alone
    #[arg(long, default_value = "GET")]
    method: String,
    /// At this address, which its name would have
    #[arg(long)]
    address: Option<std::net::IpAddr>,
}

/// Options of `casemate policy explain`.
#[derive(Args)]
pub struct Explain {
    /// What they want, such as create-session
    action: Action,
    /// Whose question it is: a key's, by its public part
    #[arg(long = "of", value_name = "KEY_ID", conflicts_with_all = ["team", "role", "scopes"])]
    of: Option<KeyId>,
    /// Or anybody's of this team; default when absent
    #[arg(long)]
    team: Option<Name>,
    /// Who has this role
    #[arg(long, default_value_t = Role::Member)]
    role: Role,
    /// And is narrowed to this; may be repeated
    #[arg(long = "scope", value_name = "SCOPE")]
    scopes: Vec<Scope>,
    /// To something of this team; their own when absent
    #[arg(long, value_name = "TEAM")]
    resource_team: Option<Name>,
    /// In this session
    #[arg(long, value_name = "ID")]
    session: Option<SessionId>,
    /// With this template
    #[arg(long, value_name = "T")]
    template: Option<Name>,
    /// At this time, as in 2026-03-29T08:00:00Z; now when absent
    #[arg(long, value_name = "TIME", value_parser = time)]
    at: Option<Timestamp>,
}

fn time(text: &str) -> Result<Timestamp, String> {
    let quoted = serde_json::Value::String(text.to_owned());
    let read = serde_json::from_value(quoted);
    read.map_err(|_| "write it as in 2026-03-29T08:00:00Z".to_owned())
}

impl Command {
    /// The exit code: that of a refusal when what is explained would be denied.
    pub async fn execute(self, context: &Context) -> Result<u8, Failure> {
        let request = match self {
            Self::Explain(explain) => return explain.execute(context).await,
            Self::Reach(reach) => return reach.execute(context).await,
            Self::List => {
                let Answer::Rules { items } = context.admin().ask(Request::PolicyList).await?
                else {
                    return Err(Failure::mismatch());
                };
                if context.json {
                    output::json(&items)?;
                } else {
                    let rows: Result<Vec<_>, _> = items.iter().map(row).collect();
                    output::table(&["NAME", "FROM", "SAYS"], &rows?)?;
                }
                return Ok(Exit::Ok.code());
            }
            Self::Put { name, file } => Request::PolicyPut {
                name,
                rule: read(&file)?,
            },
            Self::Rm { name } => Request::PolicyRemove { name },
        };
        match context.admin().ask(request).await? {
            Answer::Done if context.json => output::json(&serde_json::json!({}))?,
            Answer::Done => tell("it holds from now on"),
            _ => return Err(Failure::mismatch()),
        }
        Ok(Exit::Ok.code())
    }
}

fn row(named: &NamedRule) -> Result<Vec<String>, Failure> {
    let says = serde_json::to_string(&named.rule);
    let says = says.map_err(|error| Failure::new(Exit::Software, error.to_string()))?;
    let origin = match named.origin {
        RuleOrigin::File => "file",
        RuleOrigin::Store => "store",
    };
    Ok(vec![named.name.to_string(), origin.to_owned(), says])
}

fn read(file: &Path) -> Result<Rule, Failure> {
    use std::io::Read;
    let name = file.display();
    let failed =
        |error: std::io::Error| Failure::new(Exit::IoError, format!("read {name}: {error}"));
    let mut source: Box<dyn Read> = if file == Path::new("-") {
        Box::new(std::io::stdin())
    } else {
        Box::new(std::fs::File::open(file).map_err(failed)?)
    };
    let mut text = String::new();
    let source = &mut source;
    source
        .take(MAX_RULE_BYTES)
        .read_to_string(&mut text)
        .map_err(failed)?;
    serde_json::from_str(&text)
        .map_err(|error| Failure::new(Exit::Usage, format!("{name} is not a rule: {error}")))
}

impl Reach {
    async fn execute(self, context: &Context) -> Result<u8, Failure> {
        let parts = self.url.split_once("://");
        let (scheme, rest) = parts
            .and_then(|(scheme, rest)| Some((scheme.parse::<Scheme>().ok()?, rest)))
            .ok_or_else(|| {
                Failure::new(
                    Exit::Usage,
                    "write what it shall reach as in https://example.org",
                )
            })?;
        let (authority, path) = match rest.split_once('/') {
            Some((authority, path)) => (authority, format!("/{path}")),
            None => (rest, "/".to_owned()),
        };
        let path = path.split('?').next().unwrap_or_default().to_owned();
        let reach = protocol::Reach {
            scheme,
            authority: authority.to_owned(),
            request: (scheme == Scheme::Http).then(|| (self.method.clone(), path)),
            address: self.address,
        };
        let session = self.session;
        let request = Request::EgressExplain { session, reach };
        let Answer::Reached(decision) = context.admin().ask(request).await? else {
            return Err(Failure::mismatch());
        };
        if context.json {
            output::json(&decision)?;
        } else {
            let word = if decision.allowed {
                "allowed"
            } else {
                "denied"
            };
            output::line(&format!("{word} by {}: {}", decision.rule, decision.reason))?;
        }
        Ok(if decision.allowed {
            Exit::Ok.code()
        } else {
            Exit::Failed.code()
        })
    }
}

impl Explain {
    async fn execute(self, context: &Context) -> Result<u8, Failure> {
        let whom = Whom {
            key: self.of,
            team: self.team.clone(),
            role: self.role,
            scopes: narrowed(&self.scopes),
        };
        let request = Request::PolicyExplain {
            whom,
            action: self.action,
            team: self.resource_team,
            session: self.session,
            template: self.template,
            at: self.at,
        };
        let Answer::Explained(explained) = context.admin().ask(request).await? else {
            return Err(Failure::mismatch());
        };
        let decision = &explained.decision;
        if context.json {
            output::json(&explained)?;
        } else {
            let word = if decision.allowed {
                "allowed"
            } else {
                "denied"
            };
            output::line(&format!("{word} by {}: {}", decision.rule, decision.reason))?;
            if decision.hidden {
                output::line("they are told that there is no such thing")?;
            }
            let rows: Vec<_> = explained
                .considered
                .iter()
                .map(|seen| {
                    let effect = serde_json::to_value(seen.effect).unwrap_or_default();
                    let misses = serde_json::to_value(seen.misses).unwrap_or_default();
                    let word = misses.as_str().map_or_else(
                        || "speaks".to_owned(),
                        |condition| format!("is silent: {condition} does not hold"),
                    );
                    let effect = effect.as_str().unwrap_or_default().to_owned();
                    vec![seen.name.to_string(), effect, word]
                })
                .collect();
            if !rows.is_empty() {
                output::table(&["RULE", "EFFECT", "HERE IT"], &rows)?;
            }
        }
        Ok(if decision.allowed {
            Exit::Ok.code()
        } else {
            Exit::Failed.code()
        })
    }
}
