//! Names and commands of several sandboxes that are made at once: `{name}` and `{index}` stand for each one's own.

use crate::error::CliError;
use sandbox_core::id::Name;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// The names of `count` sandboxes: `fix` gives `fix-1`, `fix-2`, …; with `{index}` in it the number is there. Without
/// a pattern each is to be made up.
pub fn names(pattern: Option<&str>, count: u32) -> Result<Vec<Option<Name>>, CliError> {
    let Some(pattern) = pattern else { return Ok((0..count).map(|_| None).collect()) };
    let name = |n: u32| match pattern.contains("{index}") {
        true => pattern.replace("{index}", &n.to_string()),
        false => format!("{pattern}-{n}"),
    };
    (1..=count).map(|n| Ok(Some(Name::parse(&name(n))?))).collect()
}

/// One argument for the sandbox `name`, the `index`th. What a shell would replace itself (`${name}`) stays as it is.
pub fn fill(argument: &OsStr, name: &str, index: usize) -> OsString {
    let bytes = argument.as_bytes();
    let index = index.to_string();
    let (mut out, mut at) = (Vec::with_capacity(bytes.len()), 0);
    while at < bytes.len() {
        let of_shell = at > 0 && bytes[at - 1] == b'$';
        let mut words = [("{name}", name), ("{index}", &*index)].into_iter();
        match words.find(|(word, _)| !of_shell && bytes[at..].starts_with(word.as_bytes())) {
            Some((word, value)) => {
                out.extend(value.as_bytes());
                at += word.len();
            }
            None => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    OsString::from_vec(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_has_its_own_name_and_number() {
        let of = |pattern, count| -> Vec<String> {
            names(pattern, count).unwrap().into_iter().map(|name| name.map_or("?".into(), |n| n.to_string())).collect()
        };
        assert_eq!(of(Some("fix"), 3), ["fix-1", "fix-2", "fix-3"]);
        assert_eq!(of(Some("t{index}.x"), 2), ["t1.x", "t2.x"]);
        assert_eq!(of(None, 2), ["?", "?"]);
        assert!(names(Some("Not {index}"), 2).is_err());
        assert!(names(Some("{name}"), 1).is_err());
    }

    #[test]
    fn an_argument_is_filled_and_shell_words_are_left() {
        let fill = |text: &str| fill(OsStr::new(text), "fix-2", 2).into_string().unwrap();
        assert_eq!(fill("--out={name}.log"), "--out=fix-2.log");
        assert_eq!(fill("seed {index} of {index}{name}"), "seed 2 of 2fix-2");
        assert_eq!(fill("echo ${name} $name {name"), "echo ${name} $name {name");
        assert_eq!(fill("{}{ name }{INDEX}"), "{}{ name }{INDEX}");
        assert_eq!(super::fill(OsStr::from_bytes(b"\xff{index}"), "n", 7).as_bytes(), b"\xff7");
    }
}
