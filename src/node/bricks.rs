//! The bricks of this server: one thread holds their cores, their disks' rings and their connections.

use super::cluster::{Change, Cluster, Expect};
use crate::records::{BrickRecord, ClusterView, VolumeStatus, group_key};
use crate::wire::BrickHello;
use brickraft_engine::io::uring::Readiness;
use brickraft_engine::member::Clock;
use brickraft_engine::types::{NodeId, Time};
use brickraft_fs::fop::TimeSpec;
use brickraft_fs::replica::{AdminRequest, BrickId, ConfigProposal, GroupConfig, GroupInfo, ReplicaCore, ReplicaEvent, ReplicaOutput};
use brickraft_fs::store::{BrickMeta, BrickStore, DirStore, StoreError};
use brickraft_net::frame::{Frame, Preface};
use brickraft_net::link::{Link, LinkEvent};
use bytes::Bytes;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::{AbortHandle, spawn_local};

/// How often a brick that could not be opened is tried again.
const REOPEN: Duration = Duration::from_secs(5);

/// All bricks of this server.
pub struct Bricks {
    node: NodeId,
    cluster: Cluster,
    clock: Clock,
    running: RefCell<BTreeMap<BrickId, Rc<Brick>>>,
    failed: RefCell<BTreeMap<BrickId, (String, Time)>>,
    conns: RefCell<BTreeMap<u64, mpsc::UnboundedSender<Frame>>>,
    next_conn: Cell<u64>,
    lease: Cell<Time>,
    stopping: Cell<bool>,
}

/// A running brick.
struct Brick {
    id: BrickId,
    group: String,
    core: RefCell<ReplicaCore<DirStore>>,
    links: RefCell<BTreeMap<BrickId, (String, Link)>>,
    admin: RefCell<BTreeMap<u64, oneshot::Sender<GroupInfo>>>,
    next_admin: Cell<u64>,
    left: RefCell<Option<oneshot::Sender<()>>>,
    timer: Rc<Notify>,
    tasks: RefCell<Vec<AbortHandle>>,
}

impl Drop for Brick {
    fn drop(&mut self) {
        for task in self.tasks.borrow().iter() {
            task.abort();
        }
    }
}

fn wall() -> TimeSpec {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    TimeSpec { sec: now.as_secs().cast_signed(), nsec: now.subsec_nanos() }
}

/// True when `path` lies on the file system that holds `/`.
pub fn on_root_file_system(path: &Path) -> bool {
    let device = |p: &Path| p.metadata().map(|m| m.dev()).ok();
    path.ancestors().find_map(device) == device(Path::new("/"))
}

/// Makes an empty brick where somebody emptied the directory or replaced the disk. What is left there has no index
/// any more and cannot be trusted; it is put aside, next to the brick.
fn make_anew(path: &Path, meta: BrickMeta) -> Result<(), String> {
    tracing::warn!(path = %path.display(), "the brick's identity is gone; it starts anew, empty, and is healed");
    let private = path.join(".brickraft");
    if private.exists() {
        std::fs::remove_dir_all(&private).map_err(|e| format!("remove what is left of {}: {e}", private.display()))?;
    }
    let left: Vec<_> = std::fs::read_dir(path)
        .map_err(|e| format!("read {}: {e}", path.display()))?
        .filter_map(Result::ok)
        .filter(|e| e.file_name() != "lost+found")
        .collect();
    if !left.is_empty() {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let aside = path.with_file_name(format!(".{name}.left-{}", wall().sec));
        std::fs::create_dir(&aside).map_err(|e| format!("make {}: {e}", aside.display()))?;
        tracing::warn!(aside = %aside.display(), entries = left.len(), "what was left in the brick's directory is put aside");
        for entry in left {
            std::fs::rename(entry.path(), aside.join(entry.file_name()))
                .map_err(|e| format!("put {} aside: {e}; empty {} by hand", entry.path().display(), path.display()))?;
        }
    }
    DirStore::create(path, meta).map_err(|e| e.to_string())
}

impl Bricks {
    /// Follows the cluster's records from now on, and runs the bricks that they give to `node`.
    pub fn start(node: NodeId, cluster: Cluster) -> Rc<Self> {
        let clock = cluster.member().clock();
        let this = Rc::new(Self {
            node,
            cluster,
            clock,
            running: RefCell::default(),
            failed: RefCell::default(),
            conns: RefCell::default(),
            next_conn: Cell::new(1),
            lease: Cell::new(Time(0)),
            stopping: Cell::new(false),
        });
        spawn_local(this.clone().follow());
        this
    }

    async fn follow(self: Rc<Self>) {
        let mut changes = self.cluster.changes();
        changes.mark_changed();
        loop {
            tokio::select! {
                changed = changes.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(REOPEN) => {}
            }
            let view = changes.borrow_and_update().clone();
            self.reconcile(&view);
        }
    }

    /// Opens and closes bricks, and tells each what the records say.
    fn reconcile(self: &Rc<Self>, view: &ClusterView) {
        if self.stopping.get() {
            return;
        }
        let wanted =
            |b: &BrickRecord| b.node == self.node && view.volumes.get(&b.volume).is_some_and(|v| v.status == VolumeStatus::Started);
        let gone: Vec<BrickId> = self.running.borrow().keys().copied().filter(|id| !view.bricks.get(id).is_some_and(wanted)).collect();
        for id in gone {
            tracing::info!(brick = format_args!("{id:016x}"), "brick stopped");
            self.running.borrow_mut().remove(&id);
        }
        self.failed.borrow_mut().retain(|id, _| view.bricks.get(id).is_some_and(wanted));
        for record in view.bricks.values().filter(|b| wanted(b)) {
            if !self.running.borrow().contains_key(&record.id) {
                self.open(record, view);
            }
        }
        let running: Vec<_> = self.running.borrow().values().cloned().collect();
        for brick in running {
            let Some((config, _)) = view.groups.get(&brick.group) else { continue };
            self.connect(&brick, config, view);
            self.handle(&brick, ReplicaEvent::Config(config.clone()));
        }
    }

    fn open(self: &Rc<Self>, record: &BrickRecord, view: &ClusterView) {
        let now = self.clock.now();
        if let Some((_, at)) = self.failed.borrow().get(&record.id)
            && now.since(*at) < REOPEN
        {
            return;
        }
        match self.try_open(record, view) {
            Ok(brick) => {
                tracing::info!(path = %record.path, brick = format_args!("{:016x}", record.id), "brick started");
                self.failed.borrow_mut().remove(&record.id);
                self.running.borrow_mut().insert(record.id, brick);
            }
            Err(why) => {
                tracing::error!(path = %record.path, %why, "brick cannot be started");
                self.failed.borrow_mut().insert(record.id, (why, now));
            }
        }
    }

    fn try_open(self: &Rc<Self>, record: &BrickRecord, view: &ClusterView) -> Result<Rc<Brick>, String> {
        let path = Path::new(&record.path);
        let volume = view.volumes.get(&record.volume).and_then(|v| u128::from_str_radix(&v.id, 16).ok()).ok_or("its volume has no id")?;
        if on_root_file_system(path) && !record.on_root {
            return Err(format!("{}: lies on the root file system, which it did not when it was made: is its disk mounted?", record.path));
        }
        let store = match DirStore::open(path) {
            Err(StoreError::NotABrick { .. }) => {
                let meta = BrickMeta { volume, brick: record.id, ..BrickMeta::default() };
                make_anew(path, meta)?;
                DirStore::open(path)
            }
            other => other,
        }
        .map_err(|e| e.to_string())?;
        let meta = store.meta();
        if (meta.volume, meta.brick) != (volume, record.id) {
            return Err(format!(
                "{}: is brick {:016x} of volume {:032x}, not brick {:016x} of volume {volume:032x}",
                record.path, meta.brick, meta.volume, record.id
            ));
        }
        let ready = Readiness::new(&store).map_err(|e| format!("watch the brick's ring: {e}"))?;
        let core = ReplicaCore::new(record.id, store, self.clock.now(), rand::random()).map_err(|e| e.to_string())?;
        let brick = Rc::new(Brick {
            id: record.id,
            group: group_key(&record.volume, record.group),
            core: RefCell::new(core),
            links: RefCell::default(),
            admin: RefCell::default(),
            next_admin: Cell::new(1),
            left: RefCell::default(),
            timer: Rc::default(),
            tasks: RefCell::default(),
        });
        let weak = Rc::downgrade(&brick);
        let (this, timed, timer) = (self.clone(), weak.clone(), brick.timer.clone());
        let mut tasks = vec![spawn_local(async move {
            // While it waits it does not hold the brick: a brick that is dropped must close at once.
            while let Some(due) = timed.upgrade().map(|brick| this.clock.instant(brick.core.borrow().next_timeout())) {
                tokio::select! {
                    () = tokio::time::sleep_until(due.into()) => {
                        let Some(brick) = timed.upgrade() else { return };
                        this.handle(&brick, ReplicaEvent::Timer);
                    }
                    () = timer.notified() => {}
                }
            }
        })];
        let this = self.clone();
        tasks.push(spawn_local(async move {
            // What completes while the core reaps wakes it anew.
            while ready.ready().await.is_ok() {
                let Some(brick) = weak.upgrade() else { return };
                this.handle(&brick, ReplicaEvent::StoreReady);
            }
        }));
        *brick.tasks.borrow_mut() = tasks.iter().map(tokio::task::JoinHandle::abort_handle).collect();
        self.handle(&brick, ReplicaEvent::Lease(self.lease.get()));
        Ok(brick)
    }

    /// Keeps a link to every other brick of the group.
    fn connect(self: &Rc<Self>, brick: &Rc<Brick>, config: &GroupConfig, view: &ClusterView) {
        let mut links = brick.links.borrow_mut();
        links.retain(|peer, (address, _)| config.members.contains(peer) && view.brick_address(*peer) == Some(address));
        for &peer in config.members.iter().filter(|&&p| p != brick.id) {
            let Some(address) = view.brick_address(peer) else { continue };
            if links.contains_key(&peer) {
                continue;
            }
            let hello = Bytes::from(postcard::to_allocvec(&BrickHello { from: brick.id, to: peer }).expect("plain data"));
            let (this, weak) = (self.clone(), Rc::downgrade(brick));
            let link = Link::start(address.to_owned(), Preface::Brick, hello, move |event| {
                let Some(brick) = weak.upgrade() else { return };
                match event {
                    LinkEvent::Up => this.handle(&brick, ReplicaEvent::PeerUp(peer)),
                    LinkEvent::Down => this.handle(&brick, ReplicaEvent::PeerDown(peer)),
                    LinkEvent::Refused => this.peer_dead(&brick, peer),
                }
            });
            links.insert(peer, (address.to_owned(), link));
        }
    }

    /// A brick's process is gone: nobody listens where it did. It holds no lease any more, so the group can go on
    /// without it at once; the incarnation makes sure that it is that process that is meant.
    fn peer_dead(self: &Rc<Self>, brick: &Rc<Brick>, peer: BrickId) {
        let incarnation = brick.core.borrow().peer_incarnation(peer);
        self.handle(brick, ReplicaEvent::PeerDead(peer));
        let view = self.cluster.view();
        let Some((config, _)) = view.groups.get(&brick.group) else { return };
        let held = incarnation.is_some_and(|i| config.holds(peer, i));
        let we_hold = config.holds(brick.id, brick.core.borrow().incarnation());
        if held
            && we_hold
            && let Some(new) = config.without(&[peer])
        {
            self.propose(brick, ConfigProposal { expect_epoch: config.epoch, new });
        }
    }

    /// Gives a brick an event and does what it wants done.
    fn handle(self: &Rc<Self>, brick: &Rc<Brick>, event: ReplicaEvent) {
        // Outputs may lead to events of the same brick only through tasks, never from in here.
        let mut core = brick.core.borrow_mut();
        core.handle(self.clock.now(), wall(), event);
        while let Some(output) = core.poll_output() {
            match output {
                ReplicaOutput::Reply { conn, request, result, payload } => {
                    if let Some(to) = self.conns.borrow().get(&conn) {
                        let head = Bytes::from(postcard::to_allocvec(&result).expect("plain data"));
                        let _ = to.send(Frame { id: request, head, payload });
                    }
                }
                ReplicaOutput::ToPeer { to, msg, payload } => {
                    if let Some((_, link)) = brick.links.borrow().get(&to) {
                        let head = Bytes::from(postcard::to_allocvec(&msg).expect("plain data"));
                        link.send(Frame { id: 0, head, payload });
                    }
                }
                ReplicaOutput::Propose(proposal) => self.propose(brick, proposal),
                ReplicaOutput::Admin { id, info } => {
                    if let Some(to) = brick.admin.borrow_mut().remove(&id) {
                        let _ = to.send(info);
                    }
                }
                ReplicaOutput::Left { .. } => {
                    if let Some(to) = brick.left.borrow_mut().take() {
                        let _ = to.send(());
                    }
                }
                ReplicaOutput::Recreate => {
                    let (this, id) = (self.clone(), brick.id);
                    // Closing it is enough: the next look at the records opens it, finds no brick and makes one.
                    spawn_local(async move {
                        drop(this.running.borrow_mut().remove(&id));
                        // The core may still be held by tasks that are just ending.
                        tokio::task::yield_now().await;
                        this.reconcile(&this.cluster.view());
                    });
                }
                ReplicaOutput::Fatal(why) => {
                    tracing::error!(brick = format_args!("{:016x}", brick.id), %why, "the brick's disk failed; the brick is stopped");
                    self.failed.borrow_mut().insert(brick.id, (why, self.clock.now()));
                    let (this, id) = (self.clone(), brick.id);
                    spawn_local(async move { drop(this.running.borrow_mut().remove(&id)) });
                }
            }
        }
        drop(core);
        brick.timer.notify_one();
    }

    fn propose(self: &Rc<Self>, brick: &Rc<Brick>, proposal: ConfigProposal) {
        let (this, weak) = (self.clone(), Rc::downgrade(brick));
        let group = brick.group.clone();
        spawn_local(async move {
            let committed = this.commit(&group, &proposal).await;
            if let Some(brick) = weak.upgrade() {
                this.handle(&brick, ReplicaEvent::ProposalDone { expect_epoch: proposal.expect_epoch, committed });
            }
        });
    }

    /// Writes a group's configuration if its epoch is still as expected; `None` when the outcome is unknown.
    pub async fn commit(&self, group: &str, proposal: &ConfigProposal) -> Option<bool> {
        let view = self.cluster.view();
        let (known, revision) = view.groups.get(group)?;
        if known.epoch != proposal.expect_epoch {
            return if known.epoch > proposal.expect_epoch { Some(false) } else { None };
        }
        tracing::info!(group, epoch = proposal.new.epoch, primary = format_args!("{:016x}", proposal.new.primary), in_sync = ?proposal.new.in_sync, "proposing a configuration");
        match self.cluster.commit(&[Expect::At(group.into(), *revision)], vec![Change::put(group.into(), &proposal.new)]).await {
            Ok(committed) => Some(committed),
            Err(e) => {
                tracing::warn!(group, %e, "the configuration could not be changed");
                None
            }
        }
    }

    /// The node's lease with the store holds until `until`.
    pub fn lease(self: &Rc<Self>, until: Time) {
        self.lease.set(until);
        let running: Vec<_> = self.running.borrow().values().cloned().collect();
        for brick in running {
            self.handle(&brick, ReplicaEvent::Lease(until));
        }
    }

    /// A connection whose answers go to `frames`; its number.
    pub fn connected(&self, frames: mpsc::UnboundedSender<Frame>) -> u64 {
        let conn = self.next_conn.get();
        self.next_conn.set(conn + 1);
        self.conns.borrow_mut().insert(conn, frames);
        conn
    }

    /// The connection is gone.
    pub fn disconnected(&self, conn: u64) {
        self.conns.borrow_mut().remove(&conn);
    }

    /// An event for a brick that runs here; false when it does not.
    pub fn deliver(self: &Rc<Self>, brick: BrickId, event: ReplicaEvent) -> bool {
        let found = self.running.borrow().get(&brick).cloned();
        let Some(brick) = found else { return false };
        self.handle(&brick, event);
        true
    }

    /// Asks a brick; `None` when it does not run here.
    pub async fn admin(self: &Rc<Self>, brick: BrickId, request: AdminRequest) -> Option<GroupInfo> {
        let brick = self.running.borrow().get(&brick).cloned()?;
        let id = brick.next_admin.get();
        brick.next_admin.set(id + 1);
        let (tx, rx) = oneshot::channel();
        brick.admin.borrow_mut().insert(id, tx);
        self.handle(&brick, ReplicaEvent::Admin { id, request });
        rx.await.ok()
    }

    /// The bricks of this server that should run, each with its incarnation or what keeps it from running.
    pub fn status(&self) -> Vec<(BrickId, Result<u64, String>)> {
        let running = self.running.borrow();
        let failed = self.failed.borrow();
        let good = running.values().map(|b| (b.id, Ok(b.core.borrow().incarnation())));
        good.chain(failed.iter().map(|(&id, (why, _))| (id, Err(why.clone())))).collect()
    }

    /// Takes every brick out of its group, so that clients go on elsewhere at once, and closes it.
    pub async fn stop(self: &Rc<Self>, patience: Duration) {
        self.stopping.set(true);
        let running: Vec<_> = self.running.borrow().values().cloned().collect();
        let mut waits = Vec::new();
        for brick in &running {
            let (tx, rx) = oneshot::channel();
            *brick.left.borrow_mut() = Some(tx);
            self.handle(brick, ReplicaEvent::Leave);
            waits.push(rx);
        }
        let all = async {
            for wait in waits {
                let _ = wait.await;
            }
        };
        if tokio::time::timeout(patience, all).await.is_err() {
            tracing::warn!("a brick could not leave its group in time; the others will notice that it is gone");
        }
        self.running.borrow_mut().clear();
    }

    /// The view that bricks act on.
    pub fn view(&self) -> Arc<ClusterView> {
        self.cluster.view()
    }
}
