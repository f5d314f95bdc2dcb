//! What sessions have pushed, as the administrator asks for it.

use super::{Admin, MAX_BODY, Told, fail, read};
use crate::desk::blocking;
use crate::identity::SessionId;
use crate::name::RepoName;
use crate::scratch::held::{AllHeld, HeldError, Holdings, Saved, Wanted};
use crate::serve::{Request, Response, json, text};
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::StatusCode;
use hyper::body::{Body, Frame};
use hyper::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderValue};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, ReadBuf};

/// Bytes of a file in one piece.
const PIECE: usize = 64 << 10;
/// The next step where something is nowhere else.
const SAVE: &str = "`git sandbox mirror scratch bundle` or `… fetch` saves it; `… drop --force` drops it without that";

fn refused(error: &HeldError) -> Box<Response> {
    let (status, hint) = match error {
        HeldError::Absent { .. } => {
            (StatusCode::NOT_FOUND, Some("`git sandbox mirror scratch list` has what there is"))
        }
        HeldError::NotSaved { .. } => (StatusCode::CONFLICT, Some(SAVE)),
        HeldError::Changed { .. } => (StatusCode::CONFLICT, Some("try again: it is looked at anew")),
        _ => (StatusCode::INTERNAL_SERVER_ERROR, None),
    };
    let source = std::error::Error::source(error).map(|source| format!(": {source}")).unwrap_or_default();
    fail(status, format!("{error}{source}"), hint)
}

impl Admin {
    fn holdings(&self) -> Holdings {
        Holdings::new(self.desk.git.clone(), self.desk.layout.clone())
    }

    /// Answers what is below `/v1/scratch`; `rest` is the path behind that.
    pub(super) async fn scratch(&self, method: &str, rest: &str, query: &str, request: Request) -> Told {
        let not_found = || fail(StatusCode::NOT_FOUND, "no such path", None);
        let holdings = self.holdings();
        if rest.is_empty() {
            if method != "GET" {
                return Err(not_found());
            }
            let names: Vec<RepoName> = self.desk.registry.now().repos.keys().cloned().collect();
            let all = blocking(move || -> Result<_, HeldError> {
                let lists = names.iter().map(|name| holdings.list(name)).collect::<Result<Vec<_>, _>>()?;
                Ok(AllHeld { scratch: lists.into_iter().flatten().collect() })
            });
            return Ok(json(StatusCode::OK, &all.await?.map_err(|error| refused(&error))?));
        }
        let (session, rest) = rest.split_once('/').ok_or_else(not_found)?;
        let session: SessionId = session.parse().map_err(|error| fail(StatusCode::BAD_REQUEST, error, None))?;
        let (verb, name) = match method {
            "POST" => rest.split_once('/').ok_or_else(not_found)?,
            _ => ("", rest),
        };
        let name = self.named(name)?;
        if self.desk.registry.record(&name).is_none() {
            return Err(Self::unknown(&name));
        }
        match (method, verb) {
            ("GET", _) => {
                let held = blocking(move || holdings.show(&name, &session)).await?;
                Ok(json(StatusCode::OK, &held.map_err(|error| refused(&error))?))
            }
            ("POST", "bundle") => {
                let wanted: Wanted = read(request).await?;
                let made = blocking(move || holdings.bundle(&name, &session, &wanted)).await?;
                match made.map_err(|error| refused(&error))? {
                    None => Ok(text(StatusCode::NO_CONTENT, "")),
                    Some(file) => sent(file).map_err(|error| fail(StatusCode::INTERNAL_SERVER_ERROR, error, None)),
                }
            }
            ("POST", "saved") => {
                let saved: Saved = read(request).await?;
                let noted = blocking(move || {
                    holdings.saved(&name, &session, &saved).and_then(|()| holdings.show(&name, &session))
                });
                Ok(json(StatusCode::OK, &noted.await?.map_err(|error| refused(&error))?))
            }
            ("DELETE", _) => {
                let force = query.split('&').any(|word| word == "force");
                let dropped = blocking(move || holdings.drop(&name, &session, force)).await?;
                Ok(json(StatusCode::OK, &dropped.map_err(|error| refused(&error))?))
            }
            _ => Err(not_found()),
        }
    }
}

/// A file as an answer, with its length: what breaks off is seen to.
fn sent(file: std::fs::File) -> io::Result<Response> {
    let length = file.metadata()?.len();
    let body = FileBody { file: tokio::fs::File::from_std(file), buffer: vec![0; PIECE] };
    let mut response = Response::new(body.boxed_unsync());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/x-git-bundle"));
    response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(length));
    Ok(response)
}

struct FileBody {
    file: tokio::fs::File,
    buffer: Vec<u8>,
}

impl Body for FileBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        let this = self.get_mut();
        let mut buffer = ReadBuf::new(&mut this.buffer);
        Poll::Ready(match ready!(Pin::new(&mut this.file).poll_read(cx, &mut buffer)) {
            Err(error) => Some(Err(error)),
            Ok(()) if buffer.filled().is_empty() => None,
            Ok(()) => Some(Ok(Frame::data(Bytes::copy_from_slice(buffer.filled())))),
        })
    }
}

const _: () = assert!(MAX_BODY >= 1024 * 70, "what a reader has fits into a request");
