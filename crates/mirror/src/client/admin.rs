//! The administrator's side: one exchange for each thing that is asked of a service.

use super::Endpoint;
use super::request::{Answer, Request, download, exchange};
use serde_json::Value;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Why something was not done.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// Nobody is at the socket.
    #[error("cannot reach the mirror at '{}'", path.display())]
    Unavailable {
        /// Its socket.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// It said no.
    #[error("{message}")]
    Refused {
        /// The HTTP status.
        status: u16,
        /// Why.
        message: String,
        /// The next step.
        hint: Option<String>,
    },
    /// It said something else than JSON.
    #[error("the mirror at '{}' answered something unexpected", path.display())]
    Unexpected {
        /// Its socket.
        path: PathBuf,
    },
}

/// A service's administrator.
#[derive(Clone, Debug)]
pub struct Admin {
    path: PathBuf,
}

impl Admin {
    /// The service whose socket this is.
    pub fn at(path: &Path) -> Self {
        Self { path: path.to_owned() }
    }

    /// Asks for something and returns the answer; `Null` where there is none.
    pub fn call(&self, method: &str, path: &str, body: Option<&Value>, limit: Duration) -> Result<Value, AdminError> {
        let body = body.map(Value::to_string);
        let request = Request { method, path, body: body.as_deref(), bearer: None, git: false };
        let answer = exchange(&Endpoint::Unix(self.path.clone()), &request, limit)
            .map_err(|source| AdminError::Unavailable { path: self.path.clone(), source })?;
        self.told(&answer)
    }

    /// Asks for a file and writes it to `sink`; false where there is none to be had.
    pub fn file(&self, path: &str, body: &Value, sink: &mut dyn Write, limit: Duration) -> Result<bool, AdminError> {
        let body = body.to_string();
        let request = Request { method: "POST", path, body: Some(&body), bearer: None, git: false };
        let answer = download(&Endpoint::Unix(self.path.clone()), &request, limit, sink)
            .map_err(|source| AdminError::Unavailable { path: self.path.clone(), source })?;
        self.told(&answer)?;
        Ok(answer.status == 200)
    }

    fn told(&self, answer: &Answer) -> Result<Value, AdminError> {
        let value = serde_json::from_slice::<Value>(&answer.body);
        if (200..300).contains(&answer.status) {
            return match value {
                Ok(value) => Ok(value),
                Err(_) if answer.body.is_empty() => Ok(Value::Null),
                Err(_) => Err(AdminError::Unexpected { path: self.path.clone() }),
            };
        }
        let said = |key: &str| value.as_ref().ok().and_then(|value| value[key].as_str()).map(str::to_owned);
        let text = || String::from_utf8_lossy(&answer.body).lines().next().unwrap_or("it said nothing").to_owned();
        let message = said("error").unwrap_or_else(text);
        Err(AdminError::Refused { status: answer.status, message, hint: said("hint") })
    }
}
