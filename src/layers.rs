//! Names of the wall's layers, as `doctor` has them.

use sandbox_core::driver::Isolation;

/// What `--allow-weak` may name: lowered, the sandbox goes on without it.
pub const LOWERABLE: [&str; 4] = ["seccomp", "landlock", "limits", "directory-renames"];
/// What there is no sandbox without.
pub const ALWAYS: [&str; 5] = ["user-namespaces", "proc", "network", "overlay", "kernel"];

/// Reads a list of layers: several values, each with commas. An error is the name that is none.
pub fn layers(values: &[String]) -> Result<Vec<String>, String> {
    let mut layers: Vec<String> = values
        .iter()
        .flat_map(|value| value.split(','))
        .map(|word| word.trim().to_owned())
        .filter(|word| !word.is_empty())
        .collect();
    layers.sort();
    layers.dedup();
    match layers.iter().find(|layer| !known(layer)) {
        Some(layer) => Err(layer.clone()),
        None => Ok(layers),
    }
}

/// Returns whether there is a layer of this name.
pub fn known(layer: &str) -> bool {
    LOWERABLE.contains(&layer) || ALWAYS.contains(&layer)
}

/// Reads a strength of isolation.
pub fn isolation(text: &str) -> Option<Isolation> {
    match text {
        "namespace" => Some(Isolation::Namespace),
        "vm" => Some(Isolation::Vm),
        _ => None,
    }
}
