//! Tokens: what stands for a session until its client comes.
//!
//! A token is the whole of a client's right to a session, so it is random, used once, and short-lived.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rustix::rand::{GetRandomFlags, getrandom};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use crate::session::SessionError;

/// How long a client may take to come.
pub(crate) const LIFE: Duration = Duration::from_secs(60);

/// Sessions that may wait. Each holds what its handler holds.
pub(crate) const LIMIT: usize = 1000;

/// Random bytes of a token, eight characters of base64. With a thousand valid ones, a guess a microsecond hits after
/// some three days; a token lives a minute.
const BYTES: usize = 6;

#[derive(Debug)]
struct Waiting<T> {
    sessions: HashMap<String, T>,
    /// In the order they end. Used ones stay until then.
    ends: VecDeque<(Instant, String)>,
}

impl<T> Waiting<T> {
    fn expire(&mut self, now: Instant) -> Vec<T> {
        let mut expired = Vec::new();
        while let Some((end, token)) = self.ends.front()
            && *end <= now
        {
            expired.extend(self.sessions.remove(token));
            self.ends.pop_front();
        }
        expired
    }
}

#[derive(Debug)]
pub(crate) struct Tokens<T> {
    waiting: Mutex<Waiting<T>>,
    /// The first one came to wait.
    added: Notify,
}

impl<T> Default for Tokens<T> {
    fn default() -> Self {
        Self {
            waiting: Mutex::new(Waiting { sessions: HashMap::new(), ends: VecDeque::new() }),
            added: Notify::new(),
        }
    }
}

impl<T> Tokens<T> {
    fn lock(&self) -> MutexGuard<'_, Waiting<T>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A token for `session`.
    ///
    /// # Errors
    /// [`SessionError::TooMany`].
    pub(crate) fn put(&self, session: T) -> Result<String, SessionError> {
        let now = Instant::now();
        let mut waiting = self.lock();
        let expired = waiting.expire(now);
        if waiting.sessions.len() >= LIMIT {
            return Err(SessionError::TooMany { limit: LIMIT });
        }
        let token = loop {
            let token = random();
            if !waiting.sessions.contains_key(&token) {
                break token;
            }
        };
        waiting.sessions.insert(token.clone(), session);
        waiting.ends.push_back((now + LIFE, token.clone()));
        drop(waiting);
        self.added.notify_one();
        // Handlers may do anything when dropped: not under the lock.
        drop(expired);
        Ok(token)
    }

    /// The session of a token that is valid, which it is no more.
    pub(crate) fn take(&self, token: &str) -> Option<T> {
        let mut waiting = self.lock();
        let expired = waiting.expire(Instant::now());
        let session = waiting.sessions.remove(token);
        drop(waiting);
        drop(expired);
        session
    }

    /// Drops sessions as their time comes, so that what they hold is free though nobody asks. Never resolves.
    pub(crate) async fn expire(&self) {
        loop {
            let next = self.lock().ends.front().map(|(end, _)| *end);
            match next {
                Some(end) => sleep_until(end).await,
                None => self.added.notified().await,
            }
            let expired = self.lock().expire(Instant::now());
            drop(expired);
        }
    }

    /// Drops all that wait.
    pub(crate) fn clear(&self) {
        let sessions = std::mem::take(&mut self.lock().sessions);
        drop(sessions);
    }
}

fn random() -> String {
    let mut bytes = [0; BYTES];
    let mut filled = 0;
    while filled < BYTES {
        match getrandom(&mut bytes[filled..], GetRandomFlags::empty()) {
            Ok(more) => filled += more,
            Err(error) if error == rustix::io::Errno::INTR => {}
            // Once the kernel's generator is seeded, which it is long before a node runs pods, it cannot fail.
            Err(error) => panic!("getrandom: {}", io::Error::from(error)),
        }
    }
    URL_SAFE_NO_PAD.encode(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_token_is_good_once_and_for_a_minute() {
        let tokens = Tokens::default();
        let token = tokens.put("session").unwrap();
        assert_eq!(token.len(), 8);
        assert!(
            token.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_'),
            "{token}"
        );
        assert_eq!(tokens.take(&token), Some("session"));
        assert_eq!(tokens.take(&token), None);

        let (early, late) = (tokens.put("early").unwrap(), tokens.put("late").unwrap());
        tokio::time::advance(LIFE - Duration::from_millis(1)).await;
        assert_eq!(tokens.take(&early), Some("early"));
        tokio::time::advance(Duration::from_millis(1)).await;
        assert_eq!(tokens.take(&late), None);
        assert_eq!(tokens.take("AAAAAAAA"), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_thousand_may_wait() {
        let tokens = Tokens::default();
        let first = tokens.put(0).unwrap();
        for session in 1..LIMIT {
            tokens.put(session).unwrap();
        }
        assert_eq!(tokens.put(LIMIT), Err(SessionError::TooMany { limit: LIMIT }));
        assert_eq!(tokens.take(&first), Some(0));
        tokens.put(LIMIT).unwrap();
        assert!(tokens.put(LIMIT).is_err());
        tokio::time::advance(LIFE).await;
        tokens.put(LIMIT).unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_session_holds_is_free_when_its_time_is_over() {
        let tokens = Tokens::default();
        let held = std::sync::Arc::new(());
        tokio::select! {
            () = tokens.expire() => unreachable!(),
            () = async {
                tokens.put(std::sync::Arc::clone(&held)).unwrap();
                assert_eq!(std::sync::Arc::strong_count(&held), 2);
                tokio::time::sleep(LIFE + Duration::from_millis(5)).await;
            } => {}
        }
        assert_eq!(std::sync::Arc::strong_count(&held), 1);
    }
}
