//! Descriptors that are kept open as long as there is room.

use std::collections::HashMap;

/// A map that holds at most `room` values and gives up those that were not used for longest.
#[derive(Debug)]
pub struct Cache<V> {
    room: usize,
    clock: u64,
    values: HashMap<u64, (V, u64)>,
}

impl<V> Cache<V> {
    /// Returns an empty one for at least 8 values.
    pub fn new(room: usize) -> Self {
        Self { room: room.max(8), clock: 0, values: HashMap::new() }
    }

    /// Returns the value of a key, which counts as its use.
    pub fn get(&mut self, key: u64) -> Option<&mut V> {
        self.clock += 1;
        let (value, used) = self.values.get_mut(&key)?;
        *used = self.clock;
        Some(value)
    }

    /// Puts a value in and returns it. When there is no room an eighth of the values goes at once, so that
    /// looking for the oldest costs little on average.
    pub fn put(&mut self, key: u64, value: V) -> &mut V {
        self.clock += 1;
        if self.values.len() >= self.room && !self.values.contains_key(&key) {
            let mut used: Vec<u64> = self.values.values().map(|(_, used)| *used).collect();
            let (_, limit, _) = used.select_nth_unstable(self.room / 8);
            let limit = *limit;
            self.values.retain(|_, (_, used)| *used > limit);
        }
        let slot = self.values.entry(key).insert_entry((value, self.clock));
        &mut slot.into_mut().0
    }

    /// Takes a value out.
    pub fn remove(&mut self, key: u64) -> Option<V> {
        self.values.remove(&key).map(|(value, _)| value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_go_first_and_the_room_is_kept() {
        let mut cache = Cache::new(16);
        for key in 0..1000u64 {
            cache.put(key, key);
            assert_eq!(cache.get(3).copied().is_some(), key >= 3, "3 is used all the time");
            assert!(cache.values.len() <= 16);
            assert_eq!(cache.get(key), Some(&mut key.clone()));
        }
        assert_eq!(cache.get(900), None);
        assert_eq!(cache.remove(3), Some(3));
        assert_eq!(cache.get(3), None);
    }
}
