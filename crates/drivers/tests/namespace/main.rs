//! The namespace driver against the kernel: real sandboxes, looked at from inside and from outside.
//!
//! ```text
//!   this binary ─┬─ as a test: its own harness, one thread, one sandbox after the other
//!                ├─ argv[0] = git-sandbox-agent: PID 1 inside, runs one shell script for each line it gets
//!                ├─ argv[0] = session: gives up what a session must not have, then becomes the shell
//!                └─ argv[0] = supervisor: launches, says the pid, and waits to be killed
//! ```
#![forbid(unsafe_code)]

mod egress;
#[path = "../harness/mod.rs"]
mod harness;
mod inside;
mod kit;
mod life;
mod view;
mod wall;

use harness::Scenario;
use std::process::ExitCode;

const ALL: &[(&str, Scenario)] = &[
    ("arguments_are_read", harness::arguments_are_read),
    ("the_tree_is_copy_on_write", view::the_tree_is_copy_on_write),
    ("a_session_has_nothing", wall::a_session_has_nothing),
    ("the_first_process_has_one_capability", wall::the_first_process_has_one_capability),
    ("mounts_are_exactly_what_was_planned", view::mounts_are_exactly_what_was_planned),
    ("the_kernel_is_out_of_reach", wall::the_kernel_is_out_of_reach),
    ("system_calls_are_refused", wall::system_calls_are_refused),
    ("tools_work", view::tools_work),
    ("an_inner_sandbox_starts_when_nested", wall::an_inner_sandbox_starts_when_nested),
    ("a_namespace_inside_gains_nothing_outside", wall::a_namespace_inside_gains_nothing_outside),
    ("nothing_of_the_hosts_is_seen", wall::nothing_of_the_hosts_is_seen),
    ("processes_are_limited", wall::processes_are_limited),
    ("twenty_layers", view::twenty_layers),
    ("a_helper_reads", view::a_helper_reads),
    ("the_home_is_kept_and_not_trusted", view::the_home_is_kept_and_not_trusted),
    ("trees_anywhere", view::trees_anywhere),
    ("the_hosts_network", view::the_hosts_network),
    ("connections_arrive_outside", egress::connections_arrive_outside),
    ("without_a_policy_nothing_listens", egress::without_a_policy_nothing_listens),
    ("root_inside", view::root_inside),
    ("killed_at_once", life::killed_at_once),
    ("dies_with_its_supervisor", life::dies_with_its_supervisor),
    ("errors_name_their_object", life::errors_name_their_object),
    ("an_agent_that_ends_early", life::an_agent_that_ends_early),
    ("frozen_and_thawed", life::frozen_and_thawed),
    ("an_unreachable_parent", view::an_unreachable_parent),
    ("the_machine_is_checked", life::the_machine_is_checked),
    ("no_user_namespaces", life::no_user_namespaces),
    ("overlays_of_older_kernels", view::overlays_of_older_kernels),
    ("memory_is_limited", wall::memory_is_limited),
];

fn main() -> ExitCode {
    let mut args = std::env::args();
    match args.next().as_deref() {
        Some(sandbox_protocol::ARGV0) => return inside::agent(),
        Some("session") => return inside::session(args.next().unwrap_or_default()),
        Some("supervisor") => return life::supervisor(args.next().unwrap_or_default()),
        _ => {}
    }
    let args: Vec<String> = args.collect();
    if args.iter().any(|arg| arg == "--bench-launch") {
        life::bench();
        return ExitCode::SUCCESS;
    }
    if let [flag, spec] = args.as_slice()
        && flag == "--launch"
    {
        life::launch(spec);
        return ExitCode::SUCCESS;
    }
    harness::run(ALL, &args)
}
