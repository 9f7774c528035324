//! What a client knows of its volume, and how it learns more.

use crate::management::{Ask, AskError, VolumeView, ask};
use crate::records::VolumeStatus;
use brickraft_fs::replica::{BrickId, GroupConfig};
use std::sync::{Mutex, RwLock, mpsc};
use std::time::{Duration, Instant};

/// Why a volume cannot be mounted.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// No server answered, or the one that did has no such volume.
    #[error(transparent)]
    Ask(#[from] AskError),
    /// It has to be started first.
    #[error("volume {0} is not started (brickraft volume start {0})")]
    NotStarted(String),
}

/// Where to send an operation.
#[derive(Clone, Debug)]
pub(super) struct Route {
    pub(super) primary: BrickId,
    /// The life of the primary: another one knows nothing of requests that were sent to this one.
    pub(super) incarnation: u64,
    pub(super) address: String,
    pub(super) epoch: u64,
    /// Changes whenever the route does.
    pub(super) version: u64,
}

#[derive(Debug)]
pub(super) struct View {
    name: String,
    state: RwLock<State>,
    /// Held by the one thread that asks the servers; the others wait for what it learns.
    asking: Mutex<Instant>,
}

#[derive(Debug)]
struct State {
    view: VolumeView,
    route: Route,
}

/// Pause between two questions that are asked only to be on the safe side.
const SLOW_REFRESH: Duration = Duration::from_millis(250);
/// How long one server may take to answer while a caller waits.
const ASK_TIMEOUT: Duration = Duration::from_millis(700);
/// How long the others have to answer after one that knew nothing new.
const STRAGGLERS: Duration = Duration::from_millis(100);

impl View {
    pub(super) fn open(servers: &[String], name: &str) -> Result<Self, OpenError> {
        let mut last = AskError::Refused("no server named".into());
        for server in servers {
            match ask::<VolumeView>(server, &Ask::VolumeView { name: name.into() }, Duration::from_secs(10)) {
                Ok(mut view) => {
                    if view.volume.status != VolumeStatus::Started {
                        return Err(OpenError::NotStarted(name.into()));
                    }
                    // The servers that the user named come first: they were reachable from here once.
                    let known = std::mem::take(&mut view.servers);
                    view.servers = servers.to_vec();
                    view.servers.extend(known.into_iter().filter(|s| !servers.contains(s)));
                    let route = route_of(&view, 1);
                    return Ok(Self { name: name.into(), state: RwLock::new(State { view, route }), asking: Mutex::new(Instant::now()) });
                }
                Err(e) => last = e,
            }
        }
        Err(last.into())
    }

    pub(super) fn current(&self) -> VolumeView {
        self.state.read().expect("no panic holds it").view.clone()
    }

    pub(super) fn route(&self) -> Route {
        self.state.read().expect("no panic holds it").route.clone()
    }

    /// Takes a configuration that a brick told; false when it is nothing new.
    pub(super) fn learn(&self, config: GroupConfig) -> bool {
        let mut state = self.state.write().expect("no panic holds it");
        if state.view.groups.first().is_none_or(|known| known.epoch >= config.epoch) {
            return false;
        }
        state.view.groups[0] = config;
        let version = state.route.version + 1;
        state.route = route_of(&state.view, version);
        true
    }

    /// Asks the servers, unless somebody else has learnt something since `version`.
    pub(super) fn refresh(&self, version: u64) {
        let mut asked = self.asking.lock().expect("no panic holds it");
        if self.route().version != version {
            return;
        }
        let answers = self.ask_all();
        let mut until = Instant::now() + ASK_TIMEOUT;
        while let Ok((server, answer)) = answers.recv_timeout(until.saturating_duration_since(Instant::now())) {
            match answer {
                Ok(new) => {
                    let stale = self.take(new);
                    if !stale {
                        break;
                    }
                    until = until.min(Instant::now() + STRAGGLERS);
                }
                Err(e) => tracing::debug!(%server, %e, "no view from this server"),
            }
        }
        *asked = Instant::now();
    }

    /// All at once: one that is gone must not keep the caller from the others' answers.
    fn ask_all(&self) -> mpsc::Receiver<(String, Result<VolumeView, AskError>)> {
        let (answers, receiver) = mpsc::channel();
        for server in self.current().servers {
            let (answers, question) = (answers.clone(), Ask::VolumeView { name: self.name.clone() });
            let asker = std::thread::Builder::new().name("view".into());
            let asking = asker.spawn(move || {
                let answer = ask(&server, &question, ASK_TIMEOUT);
                let _ = answers.send((server, answer));
            });
            if let Err(e) = asking {
                tracing::warn!(%e, "cannot start a thread to ask a server");
            }
        }
        receiver
    }

    /// As [`View::refresh`], but not more often than four times a second.
    pub(super) fn refresh_slowly(&self, version: u64) {
        let due = self.asking.try_lock().is_ok_and(|asked| asked.elapsed() >= SLOW_REFRESH);
        if due {
            self.refresh(version);
        }
    }

    /// Takes a server's view; true when that server knew nothing newer.
    fn take(&self, new: VolumeView) -> bool {
        let mut state = self.state.write().expect("no panic holds it");
        let epoch = |v: &VolumeView| v.groups.first().map_or(0, |g| g.epoch);
        if epoch(&new) < epoch(&state.view) {
            return true;
        }
        let stale = epoch(&new) == epoch(&state.view);
        let mut servers = std::mem::take(&mut state.view.servers);
        servers.extend(new.servers.iter().filter(|s| !servers.contains(s)).cloned().collect::<Vec<_>>());
        let route = route_of(&new, state.route.version);
        let moved = route.epoch != state.route.epoch || route.address != state.route.address;
        state.view = VolumeView { servers, ..new };
        if moved {
            state.route = Route { version: state.route.version + 1, ..route };
        }
        stale && !moved
    }
}

fn route_of(view: &VolumeView, version: u64) -> Route {
    let group = view.groups.first().cloned().unwrap_or_default();
    let incarnation = group.incarnations.get(&group.primary).copied().unwrap_or(0);
    Route { primary: group.primary, incarnation, address: view.bricks.get(&group.primary).cloned().unwrap_or_default(), epoch: group.epoch, version }
}
