//! `sandbox.view`: which of the two views a sandbox gets. Deciding only.
//!
//! | wish | overlay can be had | refused, reflinks | refused, small | refused, large |
//! |---|---|---|---|---|
//! | auto | overlay | copy, said | copy, said | refused by name |
//! | overlay | overlay | refused by name | refused by name | refused by name |
//! | copy | copy | copy | copy | copy |

use crate::launch::TreeView;
use crate::units::size;
use std::fmt;
use std::str::FromStr;

/// What is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Wish {
    /// An overlay, or a copy where that costs little.
    #[default]
    Auto,
    /// An overlay or nothing.
    Overlay,
    /// A copy.
    Copy,
}

impl FromStr for Wish {
    type Err = ();
    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "auto" => Ok(Self::Auto),
            "overlay" => Ok(Self::Overlay),
            "copy" => Ok(Self::Copy),
            _ => Err(()),
        }
    }
}

/// What is known of the place where sandboxes are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Why it holds no overlay; `None` when it does.
    pub refused: Option<String>,
    /// Files can share blocks there.
    pub reflinks: bool,
    /// Bytes up to which a tree is small; `None` when every one is.
    pub limit: Option<u64>,
}

/// Why there is no view.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refused {
    /// An overlay was asked for.
    Overlay(String),
    /// A copy would be large.
    Large {
        /// Why there is no overlay.
        overlay: String,
        /// Bytes of the tree, at least.
        bytes: u64,
        /// Bytes up to which it would be small.
        limit: u64,
    },
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Overlay(why) => f.write_str(why),
            Self::Large { overlay, bytes, limit } => write!(
                f,
                "{overlay}, and a full copy of {} without shared blocks is over `sandbox.captureLimit` ({})",
                size(*bytes),
                size(*limit)
            ),
        }
    }
}

impl Place {
    /// Returns the view. Where only the size of the tree decides, a tree of which no size is known counts as small.
    pub fn choose(&self, wish: Wish, bytes: Option<u64>) -> Result<TreeView, Refused> {
        let Some(why) = self.refused.as_ref().filter(|_| wish != Wish::Copy) else {
            return Ok(if wish == Wish::Copy { TreeView::Copy } else { TreeView::Overlay });
        };
        if wish == Wish::Overlay {
            return Err(Refused::Overlay(why.clone()));
        }
        match (bytes, self.most()) {
            (Some(bytes), Some(limit)) if bytes > limit => Err(Refused::Large { overlay: why.clone(), bytes, limit }),
            _ => Ok(TreeView::Copy),
        }
    }

    /// The largest tree of which a copy is made without being asked for, in bytes.
    pub fn most(&self) -> Option<u64> {
        self.limit.filter(|_| !self.reflinks)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_views() {
        let place = |refused: bool, reflinks| Place {
            refused: refused.then(|| "no".to_owned()),
            reflinks,
            limit: Some(1 << 20),
        };
        let (small, large) = (Some(1 << 20), Some((1 << 20) + 1));
        let mut table = String::new();
        for wish in [Wish::Auto, Wish::Overlay, Wish::Copy] {
            let cases = [
                place(false, false).choose(wish, large),
                place(true, true).choose(wish, large),
                place(true, false).choose(wish, small),
                place(true, false).choose(wish, None),
                place(true, false).choose(wish, large),
            ];
            let told = cases.map(|case| case.map_or_else(|refused| refused.to_string(), |view| view.as_str().into()));
            table.push_str(&format!("{wish:?}: {}\n", told.join(" | ")));
        }
        assert_eq!(
            table,
            "Auto: overlay | copy | copy | copy | no, and a full copy of 1.0 MiB without shared blocks is over \
             `sandbox.captureLimit` (1.0 MiB)\n\
             Overlay: overlay | no | no | no | no\n\
             Copy: copy | copy | copy | copy | copy\n"
        );
    }
}
