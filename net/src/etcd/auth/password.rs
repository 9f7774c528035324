//! Passwords: bcrypt, on threads that may take their time.

use super::super::status::ApiError;
use brickraft_engine::member::MemberError;
use std::sync::Arc;
use tokio::sync::Semaphore;

/// Passwords hashed or compared at once, and waiting to be: bcrypt is slow by design, and whoever guesses passwords must
/// not take the machine from everybody else.
const AT_ONCE_MAX: usize = 2;
const WAITING_MAX: usize = 256;
/// bcrypt looks at no more; a longer password would be weaker than it looks.
const PASSWORD_BYTES_MAX: usize = 72;
/// The costs that bcrypt knows.
pub(super) const COSTS: std::ops::RangeInclusive<u32> = 4..=31;

/// Where passwords are hashed.
pub(in super::super) struct Passwords {
    cost: u32,
    running: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
}

impl Passwords {
    pub(in super::super) fn new(cost: u32) -> Self {
        Self { cost, running: Arc::new(Semaphore::new(AT_ONCE_MAX)), waiting: Arc::new(Semaphore::new(WAITING_MAX)) }
    }

    async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, ApiError> {
        let _place = self.waiting.try_acquire().map_err(|_| MemberError::TooManyRequests)?;
        // Goes with the work: a client that leaves does not stop a thread.
        let turn = self.running.clone().acquire_owned().await.map_err(|_| MemberError::Stopped)?;
        let done = tokio::task::spawn_blocking(move || {
            let result = work();
            drop(turn);
            result
        });
        done.await.map_err(|_| ApiError::Internal("hashing a password was given up"))
    }

    /// What is kept of a password.
    pub(super) async fn hash(&self, password: String) -> Result<String, ApiError> {
        if password.len() > PASSWORD_BYTES_MAX {
            return Err(ApiError::PasswordTooLong);
        }
        let cost = self.cost;
        let hashed = self.run(move || bcrypt::hash(password, cost)).await?;
        hashed.map_err(|_| ApiError::Internal("hash a password"))
    }

    /// Whether a password is the one that was hashed.
    pub(super) async fn matches(&self, password: String, hash: String) -> Result<bool, ApiError> {
        // A hash that is none comes from nowhere but damage; it matches nothing.
        self.run(move || bcrypt::verify(password, &hash).unwrap_or(false)).await
    }
}
