//! A client, as far as authentication is concerned: what it brought to say who it is, and the store as it may use it.
//!
//! All of the users' keys are reached through a [`Caller`]. While authentication is off that costs one look at a number.
//! While it is on, a write carries the caller's name and is judged where it is applied; a read is judged at the state that
//! it reads from.

use super::super::peer_name::{ClientCertName, cert_name};
use super::super::status::ApiError;
use super::super::{Api, Pending, check};
use brickraft_engine::kv::auth::{AuthError, AuthState, Grants, Identity};
use brickraft_engine::kv::types::{Applied, Command, CommandResponse, Keyspace, KvError, RangeRequest, RangeResponse};
use brickraft_engine::member::MemberError;
use brickraft_engine::types::Revision;
use futures_util::future::Either;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use tonic::Request;
use tonic::codegen::http::{HeaderMap, HeaderValue};

/// A write whose name was established just before permissions changed is sent again so often.
const OLD_REVISION_TRIES: u32 = 16;
/// Where clients put their token: gRPC's, and what comes by HTTP.
const TOKEN_KEYS: [&str; 2] = ["token", "authorization"];

/// Who may do something that has no keys.
type Fits = fn(&AuthState, Option<&Identity>) -> Result<(), AuthError>;

/// What applying a command yields, and the revision after it.
type Outcome = (CommandResponse, Revision);

/// One request's client.
#[derive(Clone)]
pub(in super::super) struct Caller {
    api: Api,
    token: Option<HeaderValue>,
    /// It said `hasleader: true`: refuse rather than wait.
    leader_required: bool,
    cert: Option<ClientCertName>,
}

/// The token in a request's headers.
fn token(headers: &HeaderMap) -> Option<&HeaderValue> {
    TOKEN_KEYS.iter().find_map(|key| headers.get(*key))
}

impl Deref for Caller {
    type Target = Api;

    fn deref(&self) -> &Api {
        &self.api
    }
}

/// What a command must carry even while authentication is off: these are the members' own as well, which ask nobody.
fn is_always_named(command: &Command) -> bool {
    !matches!(command, Command::Put(..) | Command::DeleteRange(..) | Command::Txn(..))
}

impl Api {
    /// Takes a request apart.
    pub(in super::super) fn caller<T>(&self, request: Request<T>) -> (Caller, T) {
        let (metadata, mut extensions, message) = request.into_parts();
        (Caller::new(self.clone(), metadata.as_ref(), extensions.remove::<ClientCertName>()), message)
    }

    /// Who a request is from, by the auth store as it is here; `None`: it does not say. A token that means nothing here may
    /// be so new that this member has not heard of its user: then it waits until it has heard of everything.
    async fn identify(&self, token: Option<&HeaderValue>, cert: Option<&str>) -> Result<(Arc<AuthState>, Option<Identity>), ApiError> {
        let store = self.handle().store();
        let auth = store.auth();
        let Some(token) = token else {
            let who = cert.filter(|_| auth.enabled()).map(|name| Identity { user: name.to_owned(), revision: auth.revision() });
            return Ok((auth, who));
        };
        let token = token.to_str().map_err(|_| AuthError::InvalidToken)?;
        match self.0.tokens.identify(&auth, token) {
            Ok(who) => Ok((auth, Some(who))),
            Err(e) if self.0.tokens.are_dated() => Err(e.into()),
            Err(_) => {
                self.handle().read_index().await?;
                let auth = store.auth();
                if !auth.enabled() {
                    return Ok((auth, None));
                }
                let who = self.0.tokens.identify(&auth, token)?;
                Ok((auth, Some(who)))
            }
        }
    }

    /// Refuses, while authentication is on, everybody who does not fit. The future does not hold the request, which may
    /// be a stream that cannot be shared.
    fn admission<T>(&self, request: &Request<T>, fits: Fits) -> impl Future<Output = Result<(), ApiError>> + Send + use<T> {
        let on = self.handle().store().auth_mark() != 0;
        let token = token(request.metadata().as_ref());
        let brought = on.then(|| (self.clone(), token.cloned(), cert_name(request.extensions()).map(str::to_owned)));
        async move {
            let Some((api, token, cert)) = brought else { return Ok(()) };
            let (auth, who) = api.identify(token.as_ref(), cert.as_deref()).await?;
            Ok(fits(&auth, who.as_ref())?)
        }
    }

    /// Refuses everybody but those with the root role.
    pub(in super::super) fn admit_root<T>(&self, request: &Request<T>) -> impl Future<Output = Result<(), ApiError>> + Send + use<T> {
        self.admission(request, AuthState::check_admin)
    }

    /// Refuses who does not say a user's name.
    pub(in super::super) fn admit_user<T>(&self, request: &Request<T>) -> impl Future<Output = Result<(), ApiError>> + Send + use<T> {
        self.admission(request, AuthState::check_user)
    }
}

impl Caller {
    pub(in super::super) fn new(api: Api, headers: &HeaderMap, cert: Option<ClientCertName>) -> Self {
        let leader_required = headers.get("hasleader").is_some_and(|value| value == "true");
        Self { api, token: token(headers).cloned(), leader_required, cert }
    }

    /// Refuses where the request asked for a leader, and there is none.
    pub(in super::super) fn require_a_leader(&self) -> Result<(), ApiError> {
        if self.leader_required && !self.has_leader() {
            return Err(MemberError::NoLeader.into());
        }
        Ok(())
    }

    /// Whether the request asked for a leader.
    pub(in super::super) fn leader_required(&self) -> bool {
        self.leader_required
    }

    /// The auth store as it is here, and who this is by it; no state while authentication is off.
    pub(in super::super) async fn identity(&self) -> Result<Option<(Arc<AuthState>, Option<Identity>)>, ApiError> {
        if self.handle().store().auth_mark() == 0 {
            return Ok(None);
        }
        let cert = self.cert.as_ref().map(|name| name.0.as_str()).filter(|name| !name.is_empty());
        let (auth, who) = self.api.identify(self.token.as_ref(), cert).await?;
        Ok(auth.enabled().then_some((auth, who)))
    }

    /// What this caller may do with keys.
    pub(in super::super) async fn grants(&self) -> Result<Grants, ApiError> {
        let mut tries = OLD_REVISION_TRIES;
        loop {
            let Some((auth, who)) = self.identity().await? else { return Ok(Grants::everything()) };
            tries -= 1;
            match auth.grants(who.as_ref()) {
                Err(AuthError::OldRevision) if tries > 0 && !self.is_dated() => {}
                grants => return Ok(grants?),
            }
        }
    }

    /// Refuses all but users, while authentication is on.
    pub(in super::super) async fn check_user(&self) -> Result<(), ApiError> {
        match self.identity().await? {
            None => Ok(()),
            Some((auth, who)) => Ok(auth.check_user(who.as_ref())?),
        }
    }

    /// Refuses who may not read every key that is attached to a lease.
    pub(in super::super) async fn check_lease(&self, id: i64) -> Result<(), ApiError> {
        if self.handle().store().auth_mark() == 0 {
            return Ok(());
        }
        let grants = self.grants().await?;
        if grants.is_everything() {
            return Ok(());
        }
        let keys = self.handle().store().lease_keys(id).map_err(MemberError::from)?;
        Ok(keys.iter().try_for_each(|key| grants.read(key, b""))?)
    }

    /// Proposes in this caller's name, and takes apart what applying it yields. The future is small where nothing is to be asked first: there
    /// are thousands of them.
    pub(in super::super) fn propose(&self, command: Command) -> impl Future<Output = Result<Outcome, ApiError>> + Send + use<> {
        let plain = self.settings().limits.command(&command).is_ok()
            && self.has_room(&command)
            && self.handle().store().auth_mark() == 0
            && !is_always_named(&command)
            && !self.says_a_name();
        if plain {
            return Either::Left(self.outcome(command));
        }
        let caller = self.clone();
        Either::Right(Box::pin(async move { caller.propose_checked(command).await }))
    }

    async fn propose_checked(&self, command: Command) -> Result<Outcome, ApiError> {
        self.settings().limits.command(&command)?;
        self.check_quota(&command).await?;
        if self.handle().store().auth_mark() == 0 && !is_always_named(&command) {
            if !self.says_a_name() {
                return self.outcome(command).await;
            }
            // Authentication may be on already, and this member not know it yet.
            match self.outcome(command.clone()).await {
                Err(ApiError::Kv(KvError::Auth(AuthError::UserEmpty))) => {}
                other => return other,
            }
        }
        let mut tries = OLD_REVISION_TRIES;
        loop {
            let who = self.identity().await?.and_then(|(_, who)| who);
            tries -= 1;
            match self.outcome(Command::As { who, command: Box::new(command.clone()) }).await {
                // What changed is applied here by now. A token that carries its date itself will not get any younger.
                Err(ApiError::Kv(KvError::Auth(AuthError::OldRevision))) if tries > 0 && !self.is_dated() => {}
                Err(ApiError::Kv(KvError::Auth(AuthError::UserEmpty))) if tries > 0 && self.says_a_name() => {}
                other => return other,
            }
        }
    }

    fn says_a_name(&self) -> bool {
        self.cert.is_some() || self.token.is_some()
    }

    /// Whether what it says is good for one auth revision only.
    fn is_dated(&self) -> bool {
        self.0.tokens.are_dated() && self.token.is_some()
    }

    fn outcome(&self, command: Command) -> impl Future<Output = Result<Outcome, ApiError>> + Send + use<> {
        self.settings().metrics.proposals_pending.fetch_add(1, Ordering::Relaxed);
        let pending = Pending(self.api.clone());
        let proposed = self.handle().propose(command);
        async move {
            let proposed = proposed.await;
            if proposed.is_err() {
                pending.0.settings().metrics.proposals_failed.fetch_add(1, Ordering::Relaxed);
            }
            let Applied { revision, result } = proposed?;
            Ok((result?, revision))
        }
    }

    /// Reads a range. One key is read in place; a range may hold any number of them, and must not stall the thread
    /// that serves everybody else.
    pub(in super::super) async fn range(&self, request: RangeRequest, serializable: bool) -> Result<(RangeResponse, Revision), ApiError> {
        if !serializable {
            self.handle().read_index().await?;
        }
        let store = self.handle().store();
        let mark = store.auth_mark();
        let named = if mark == 0 { None } else { Some((request.key.clone(), request.range_end.clone())) };
        if let Some((key, end)) = &named {
            self.grants().await?.read(key, end)?;
        }
        let answer = if request.range_end.is_empty() {
            store.range(Keyspace::User, &request)
        } else {
            let store = store.clone();
            let read = tokio::task::spawn_blocking(move || store.range(Keyspace::User, &request));
            read.await.map_err(|_| ApiError::Internal("a read was given up"))?
        };
        // What was read may be newer than what was asked.
        if let Some((key, end)) = named.filter(|_| store.auth_mark() != mark) {
            self.grants().await?.read(&key, &end)?;
        }
        Ok(answer.map_err(MemberError::from)?)
    }

    /// As [`Self::range`] for a request as it came.
    pub(in super::super) async fn checked_range(
        &self,
        request: super::super::pb::etcdserverpb::RangeRequest,
    ) -> Result<(RangeResponse, Revision), ApiError> {
        check::range(&request)?;
        let serializable = request.serializable;
        self.range(super::super::convert::range(request), serializable).await
    }
}

/// The name in a request's certificate, for tests of who a request is from.
#[cfg(test)]
pub(in super::super) fn with_cert<T>(mut request: Request<T>, name: &str) -> Request<T> {
    request.extensions_mut().insert(ClientCertName(name.to_owned()));
    request
}
