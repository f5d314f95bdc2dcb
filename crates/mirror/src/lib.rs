//! A hot git mirror: bare repositories that are kept fresh from their upstreams and served to many
//! clients at once. Knows git and the kernel; knows nothing of sandboxes.
//!
//! ```text
//!             upstreams (the only places that are written with authority)
//!                 │  fetch                       ▲ webhooks, POST …/ensure
//!  refresh/, ensure, webhook ──► mirrors/*.git ◄─┴── maintain/ (repack, commit-graph, quarantine)
//!       │                             │
//!  registry/ (SQLite) ── publish ──► catalog (an Arc, swapped) ──► serve/ ──► git upload-pack
//!       ▲                                                           │  │          │ hook
//!     admin                       identity (listener or token) ─────┘  │          ▼
//!                                                                 scratch/     cache/ (one spool for each pack)
//!                                                                 refs/agents/<session>
//!  event ──► metrics, log, status page
//! ```
//!
//! | room | is for |
//! |---|---|
//! | [`name`], [`identity`], [`layout`], [`repo`], [`catalog`], [`doubt`], [`event`] | values that everything else speaks in |
//! | [`serve`] | listeners, smart HTTP, `git://`, the queue, one git process for each request |
//! | [`service`] | owns all of it: starts, listens, stops |
//! | `cache`, `scratch`, `pktline` | packs made once; what sessions push; git's framing |
//! | `registry`, `config`, `credential`, `refresh`, `ensure`, `webhook`, `maintain`, `quarantine`, `admin` | what is mirrored, and that it stays fresh and whole |
//! | [`client`] | the other side: is a mirror there, a clone from it or without it, a listener that leads to it |
//! | `metrics`, `status_page`, `log` | what operators see |
//!
//! Nothing here prints or reads the environment: paths, the git to run and what it may know of the
//! environment are handed in. The serving rules S1 to S6 and security rules X1 to X7 that
//! comments name are those of `docs/decisions/mirror.md`.
#![forbid(unsafe_code)]

pub mod admin;
pub mod cache;
pub mod catalog;
pub mod client;
pub mod config;
pub mod credential;
pub mod desk;
pub mod doubt;
pub mod ensure;
pub mod event;
pub mod identity;
pub mod layout;
pub mod log;
pub mod maintain;
pub mod measure;
pub mod metrics;
pub mod name;
pub mod operate;
pub mod pktline;
pub mod quarantine;
pub mod refresh;
pub mod registry;
pub mod repo;
pub mod scratch;
pub mod serve;
pub mod service;
pub mod status_page;
pub mod tls;
pub mod webhook;
