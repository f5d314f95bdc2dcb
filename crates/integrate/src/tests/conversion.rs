//! Line ends, filters and attributes.

use super::World;

#[test]
fn crlf_in_the_working_tree_is_no_change() {
    for (attributes, config) in [("* text=auto eol=crlf\n", None), ("", Some("true")), ("*.txt text\n", Some("true"))] {
        let mut world = World::new(&[(".gitattributes", attributes)]);
        if let Some(value) = config {
            world.git(&["config", "core.autocrlf", value]);
        }
        world.write("a.txt", "1\r\n2\r\n3\r\n");
        world.write("b.txt", "1\r\n2\r\n3\r\n");
        world.git(&["add", "-A"]);
        world.git(&["commit", "-qm", "crlf"]);
        assert_eq!(world.git(&["show", "HEAD:a.txt"]), "1\n2\n3\n");
        world.write("b.txt", "1\r\n2\r\n3 user\r\n");
        world.spawn();
        world.agent_write("a.txt", "1 agent\r\n2\r\n3\r\n");
        world.agent_write("b.txt", "1 agent\r\n2\r\n3 user\r\n");
        world.agent_write("c.txt", "new\r\n");
        world.agent(&["add", "-A"]);
        world.agent(&["commit", "-qm", "all"]);
        assert_eq!(world.merged(), "", "{attributes:?} {config:?}");
        assert_eq!(world.read("a.txt"), "1 agent\r\n2\r\n3\r\n");
        assert_eq!(world.read("b.txt"), "1 agent\r\n2\r\n3 user\r\n");
        assert_eq!(world.read("c.txt"), "new\r\n");
    }
}

#[test]
fn crlf_that_is_stored_stays() {
    let mut world = World::new(&[("a", "1\r\n2\r\n")]);
    world.write(".gitattributes", "* text=auto\n");
    world.git(&["add", ".gitattributes"]);
    world.git(&["commit", "-qm", "auto", ".gitattributes"]);
    world.write("a", "1\r\n2 user\r\n");
    world.spawn();
    world.agent_write("a", "1 agent\r\n2 user\r\n");
    world.agent(&["commit", "-qam", "a"]);
    assert_eq!(world.merged(), "");
    assert_eq!(world.read("a"), "1 agent\r\n2 user\r\n");
}

#[test]
fn incoming_line_ends_count_for_what_is_written() {
    let mut world = World::new(&[("a.txt", "1\n")]);
    world.spawn();
    world.agent_write(".gitattributes", "*.txt text eol=crlf\n");
    world.agent_write("a.txt", "2\n");
    world.agent(&["add", "-A"]);
    world.agent(&["commit", "-qm", "crlf"]);
    assert_eq!(world.merged(), "");
    assert_eq!(world.read("a.txt"), "2\r\n");
}

/// A filter that leaves a trace when it runs.
fn with_filter(world: &World) -> std::path::PathBuf {
    let canary = world.host.parent().unwrap().join("canary");
    let command = format!("touch {}; tr a-z A-Z", canary.display());
    world.git(&["config", "filter.up.clean", &command]);
    world.git(&["config", "filter.up.smudge", &format!("touch {}; tr A-Z a-z", canary.display())]);
    world.git(&["config", "filter.up.required", "true"]);
    canary
}

#[test]
fn no_filter_runs_and_its_paths_are_refused_by_name() {
    let mut world = World::new(&[(".gitattributes", "*.up filter=up\n"), ("b", "1\n")]);
    let canary = with_filter(&world);
    world.write("a.up", "abc\n");
    world.git(&["add", "-A"]);
    world.git(&["commit", "-qm", "filtered"]);
    assert_eq!(world.git(&["show", "HEAD:a.up"]), "ABC\n");
    world.spawn();
    world.agent_write("a.up", "abcd\n");
    world.agent_write("b", "2\n");
    world.agent(&["commit", "-qam", "a.up"]);
    let tip = world.land();
    std::fs::remove_file(&canary).unwrap();
    let before = std::fs::read(world.host.join("a.up")).unwrap();
    let error = world.apply_quietly(tip).unwrap_err();
    assert_eq!(
        super::chain(&error),
        "cannot merge 'fix'\n'a.up' is converted by filter 'up', which is not run on what a sandbox made"
    );
    assert!(!canary.exists());
    assert_eq!(std::fs::read(world.host.join("a.up")).unwrap(), before);
}

#[test]
fn stored_form_in_the_working_tree_needs_no_filter() {
    // LFS pointers that were never smudged; a locked git-crypt.
    let mut world = World::new(&[("a.up", "POINTER 1\n")]);
    world.write(".gitattributes", "*.up filter=up\n");
    world.git(&["add", ".gitattributes"]);
    world.git(&["commit", "-qm", "attributes"]);
    world.spawn();
    world.agent_write("a.up", "POINTER 2\n");
    world.agent(&["commit", "-qam", "a.up"]);
    let tip = world.land();
    let canary = with_filter(&world);
    world.apply_quietly(tip).unwrap();
    assert!(!canary.exists());
    assert_eq!(world.read("a.up"), "POINTER 2\n");
}

#[test]
fn a_filter_that_is_not_configured_is_none() {
    let mut world = World::new(&[(".gitattributes", "*.bin filter=lfs -text\n"), ("a.bin", "version 1\n")]);
    world.spawn();
    world.agent_write("a.bin", "version 2\n");
    world.agent_write("b.bin", "version 1\n");
    world.agent(&["add", "-A"]);
    world.agent(&["commit", "-qm", "pointers"]);
    assert_eq!(world.merged(), "");
    assert_eq!(world.read("a.bin"), "version 2\n");
}

#[test]
fn an_unchanged_filtered_file_can_be_removed() {
    let mut world = World::new(&[(".gitattributes", "*.up filter=up\n")]);
    with_filter(&world);
    world.write("a.up", "abc\n");
    world.git(&["add", "-A"]);
    world.git(&["commit", "-qm", "filtered"]);
    // Older than the index: known to be clean.
    std::thread::sleep(std::time::Duration::from_millis(20));
    world.git(&["update-index", "--refresh"]);
    world.write("touch", "");
    world.git(&["add", "touch"]);
    world.git(&["commit", "-qm", "touch"]);
    world.spawn();
    world.agent(&["rm", "-q", "a.up"]);
    world.agent(&["commit", "-qm", "rm"]);
    assert_eq!(world.merged(), "");
    assert!(!world.exists("a.up"));
}

#[test]
fn incoming_attributes_run_nothing_and_are_told() {
    let mut world = World::new(&[("a.up", "1\n")]);
    world.spawn();
    world.agent_write(".gitattributes", "*.up filter=up\n");
    world.agent_write("a.up", "2\n");
    world.agent(&["add", "-A"]);
    world.agent(&["commit", "-qm", "attributes"]);
    let tip = world.land();
    let canary = with_filter(&world);
    let (plan, _) = world.apply_quietly(tip).unwrap();
    assert!(!canary.exists());
    assert_eq!(world.read("a.up"), "2\n");
    let notes: Vec<_> = plan.warnings.iter().map(|warning| format!("{} {}", warning.path, warning.why)).collect();
    assert_eq!(notes, [".gitattributes selects your filter 'up' for '*.up'"]);
}

#[test]
fn ident_and_encodings_are_refused_where_they_matter() {
    let mut world =
        World::new(&[(".gitattributes", "*.c ident\n*.u working-tree-encoding=UTF-16LE\n"), ("a.c", "1\n")]);
    world.spawn();
    world.agent_write("a.c", "2\n");
    world.agent(&["commit", "-qam", "no keyword"]);
    assert_eq!(world.merged(), "");
    world.agent_write("b.c", "$Id$\n");
    world.agent(&["add", "-A"]);
    world.agent(&["commit", "-qm", "keyword"]);
    assert_eq!(
        world.refused(),
        "cannot merge 'fix'\n'b.c' is converted by ident, which is not run on what a sandbox made"
    );
    world.agent(&["rm", "-qf", "b.c"]);
    world.agent_write("b.u", "a\0b\0");
    world.agent(&["add", "-A"]);
    world.agent(&["commit", "-qm", "encoding"]);
    assert!(world.refused().contains("'b.u' is converted by working-tree-encoding 'UTF-16LE'"));
}
