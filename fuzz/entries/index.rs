// What must hold of any bytes that are taken for an index; panics if it does not.

use sandbox_git::ObjectFormat;
use sandbox_git::index::Index;

/// What can be read can be written, and says the same then.
pub fn index(bytes: &[u8]) {
    for format in [ObjectFormat::Sha1, ObjectFormat::Sha256] {
        let Ok(index) = Index::parse(bytes.to_vec(), format) else { continue };
        assert_eq!(index.bytes(), bytes);
        let paths =
            |index: &Index| -> Vec<Vec<u8>> { index.entries().iter().map(|entry| entry.path.clone()).collect() };
        let (before, oids) = (paths(&index), index.oids().ok());
        let (split, undo, tree) = (index.is_split(), index.has_resolve_undo(), index.root_tree());
        let again = Index::parse(index.finish(), format).expect("what was written can be read");
        assert!(!again.has_machine_bound());
        assert_eq!(paths(&again), before);
        assert_eq!((again.is_split(), again.has_resolve_undo(), again.root_tree()), (split, undo, tree));
        assert_eq!(again.oids().ok(), oids);
    }
}
