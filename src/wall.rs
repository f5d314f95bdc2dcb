//! Which layers of the wall a sandbox must have. Named as `doctor` names them.
//!
//! | layer | missing | |
//! |---|---|---|
//! | `user-namespaces`, `proc`, `network` | refused, always | there is no sandbox without them |
//! | `seccomp` | refused | `--allow-weak seccomp` goes on without |
//! | `landlock`, `limits`, `directory-renames` | told, goes on | `sandbox.require` makes it refused, `--allow-weak` lowers that |
//!
//! Settings only add up: `sandbox.require` of every scope counts, and of `sandbox.minIsolation` the highest. What the
//! system's configuration requires, no flag lowers; a repository's `.sandbox.toml` may require more.

use crate::context::Context;
use crate::error::CliError;
use crate::layers::{ALWAYS, LOWERABLE, isolation, known};
use crate::project::Project;
use crate::text::escape;
use sandbox_core::driver::{Driver, Isolation};
use sandbox_core::record::SandboxRecord;

/// Where both come from.
const REQUIRE: &str = "sandbox.require";
const MIN_ISOLATION: &str = "sandbox.minIsolation";

fn word(isolation: Isolation) -> &'static str {
    match isolation {
        Isolation::Namespace => "namespace",
        Isolation::Vm => "vm",
    }
}

/// Reads a list of layers from the user's settings.
fn layers(values: &[String]) -> Result<Vec<String>, CliError> {
    crate::layers::layers(values).map_err(|layer| {
        CliError::new(format!("there is no layer '{}' to require ({REQUIRE})", escape(&layer))).hint(format!(
            "it is one of {}, {}",
            LOWERABLE.join(", "),
            ALWAYS.join(", ")
        ))
    })
}

/// What the settings and the project ask for.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Demands {
    /// Layers that must stand.
    pub require: Vec<String>,
    /// No weaker driver than this.
    pub min: Option<Isolation>,
}

impl Demands {
    /// Reads the settings, and adds what the project asks for.
    pub fn read(context: &Context, project: Option<&Project>) -> Result<Self, CliError> {
        let mut require = layers(&context.settings(REQUIRE))?;
        let mut min = None;
        for text in context.settings(MIN_ISOLATION) {
            let one = isolation(&text).ok_or_else(|| {
                CliError::new(format!("'{}' is not a value of {MIN_ISOLATION}", escape(&text)))
                    .hint("it is namespace or vm")
            })?;
            min = min.max(Some(one));
        }
        if let Some(project) = project {
            require.extend(project.require.iter().cloned());
            min = min.max(project.min_isolation);
        }
        require.sort();
        require.dedup();
        Ok(Self { require, min })
    }

    /// Refuses a driver that is weaker than asked for.
    pub fn refuse_weaker(&self, driver: &dyn Driver) -> Result<(), CliError> {
        match self.min {
            Some(min) if driver.isolation() < min => Err(CliError::new(format!(
                "the driver '{}' isolates by {}, and at least {} is asked for",
                driver.name(),
                word(driver.isolation()),
                word(min)
            ))
            .hint(format!(
                "`--isolation`, {MIN_ISOLATION} or `min-isolation` of '.sandbox.toml' asks for it; `git sandbox doctor` lists the drivers that work here"
            ))),
            _ => Ok(()),
        }
    }

    /// Refuses to lower what cannot be lowered, or not by the user.
    pub fn refuse_lowering(&self, context: &Context, allowed: &[String]) -> Result<(), CliError> {
        if let Some(layer) = allowed.iter().find(|layer| !LOWERABLE.contains(&layer.as_str())) {
            let error = if known(layer) {
                CliError::usage(format!("there is no sandbox without '{}'", escape(layer)))
            } else {
                CliError::usage(format!("there is no layer '{}' to go without", escape(layer)))
            };
            return Err(error.hint(format!("it is one of {}", LOWERABLE.join(", "))));
        }
        if allowed.is_empty() || !allowed.iter().any(|layer| self.require.contains(layer)) {
            return Ok(());
        }
        let system = layers(&system(context)?)?;
        match allowed.iter().find(|layer| system.contains(layer)) {
            Some(layer) => Err(CliError::new(format!("'{layer}' is required by the configuration of this system"))
                .hint(format!(
                    "`git config --system {REQUIRE}` tells all that is; who administers it can change that"
                ))),
            None => Ok(()),
        }
    }
}

/// What the system's configuration requires.
fn system(context: &Context) -> Result<Vec<String>, CliError> {
    let git = context.git()?;
    let out = git.user(&context.cwd).args(["config", "--system", "--null", "--get-all", REQUIRE]).output();
    // Without such a file there is nothing that it requires.
    let text = out.map(|out| out.stdout).unwrap_or_default();
    Ok(text.split(|b| *b == 0).map(|value| String::from_utf8_lossy(value).into_owned()).collect())
}

/// What of the wall may be missing around a sandbox, for the first line of a run; empty where nothing is.
pub fn weak_words(record: &SandboxRecord) -> String {
    let mut words = lowered(record);
    let lacks = sandbox_drivers::by_name(&record.driver).map(Driver::lacks).unwrap_or_default();
    words.extend(lacks.into_iter().filter(|word| !record.nested || *word != "no landlock").map(str::to_owned));
    in_brackets(&words)
}

/// The same of one that was there before, and is started for another command: only what somebody has lowered for it.
/// What the machine lacks was said when it was made, and is in `show`.
pub fn lowered_words(record: &SandboxRecord) -> String {
    in_brackets(&lowered(record))
}

fn lowered(record: &SandboxRecord) -> Vec<String> {
    let mut words: Vec<String> = record.allow_weak.iter().map(|layer| format!("may lack {}", escape(layer))).collect();
    if record.nested {
        words.push("nested".to_owned());
    }
    words
}

fn in_brackets(words: &[String]) -> String {
    if words.is_empty() { String::new() } else { format!(" ({})", words.join(", ")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sandbox_core::launch::{Accel, VmSettings};

    #[test]
    fn lists_of_layers_add_up() {
        let values = ["landlock,limits".to_owned(), " seccomp , landlock".to_owned(), String::new()];
        assert_eq!(layers(&values).unwrap(), ["landlock", "limits", "seccomp"]);
        let error = layers(&["luck".to_owned()]).unwrap_err();
        assert_eq!(error.message, "there is no layer 'luck' to require (sandbox.require)");
        assert!(error.hints[0].contains("user-namespaces"));
    }

    #[test]
    fn a_weaker_driver_is_refused() {
        let driver = sandbox_drivers::by_name("namespace").unwrap();
        let demands = |min| Demands { min, ..Demands::default() };
        assert!(demands(None).refuse_weaker(driver).is_ok());
        assert!(demands(isolation("namespace")).refuse_weaker(driver).is_ok());
        let error = demands(isolation("vm")).refuse_weaker(driver).unwrap_err();
        assert_eq!(error.message, "the driver 'namespace' isolates by namespace, and at least vm is asked for");
        assert_eq!(isolation("none"), None);
    }

    #[test]
    fn layers_are_named_as_doctor_names_them() {
        // No guest is tried for a name.
        let settings = VmSettings { accel: Accel::Tcg, ..VmSettings::default() };
        let checks: Vec<String> =
            sandbox_drivers::all().iter().flat_map(|d| d.check(&settings)).map(|c| c.name).collect();
        for layer in LOWERABLE {
            assert!(checks.iter().any(|name| name == layer), "{layer}: {checks:?}");
        }
    }
}
