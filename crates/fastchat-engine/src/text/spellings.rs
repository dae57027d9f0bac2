//! The spellings of a vocabulary, one behind the other, and the way back from a spelling to its number. Two allocations
//! instead of two for each of a quarter of a million tokens. Knows nothing of what tokens mean.

use ahash::RandomState;
use hashbrown::HashTable;

/// Spellings by number and numbers by spelling.
#[derive(Debug, Default)]
pub(crate) struct Spellings {
    text: String,
    /// Spelling `id` is `text[ends[id - 1]..ends[id]]`.
    ends: Vec<usize>,
    ids: HashTable<u32>,
    hasher: RandomState,
}

/// The range of the text that is spelling `id`.
fn range(ends: &[usize], id: usize) -> std::ops::Range<usize> {
    let start = if id == 0 { 0 } else { ends[id - 1] };
    start..ends[id]
}

impl Spellings {
    /// Of all of these, numbered from 0.
    pub(crate) fn new<'a>(spellings: impl ExactSizeIterator<Item = &'a str>) -> Self {
        let mut all = Self::default();
        all.ends.reserve(spellings.len());
        // No rehash on the way.
        all.ids.reserve(spellings.len(), |_| 0);
        spellings.for_each(|spelling| all.push(spelling));
        all
    }

    /// The next number; the last of several with one spelling is found by it.
    pub(crate) fn push(&mut self, spelling: &str) {
        let Self { text, ends, ids, hasher } = self;
        let id = ends.len() as u32;
        text.push_str(spelling);
        ends.push(text.len());
        let is_it = |&other: &u32| text[range(ends, other as usize)] == *spelling;
        let hash_of = |&other: &u32| hasher.hash_one(&text[range(ends, other as usize)]);
        match ids.entry(hasher.hash_one(spelling), is_it, hash_of) {
            hashbrown::hash_table::Entry::Occupied(mut other) => *other.get_mut() = id,
            hashbrown::hash_table::Entry::Vacant(place) => {
                place.insert(id);
            }
        }
    }

    /// The number of a spelling.
    pub(crate) fn id(&self, spelling: &str) -> Option<u32> {
        let is_it = |&id: &u32| self.text[range(&self.ends, id as usize)] == *spelling;
        self.ids.find(self.hasher.hash_one(spelling), is_it).copied()
    }

    /// The spelling of a number.
    pub(crate) fn get(&self, id: u32) -> Option<&str> {
        let id = id as usize;
        (id < self.ends.len()).then(|| &self.text[range(&self.ends, id)])
    }

    /// All spellings by number.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &str> {
        (0..self.ends.len()).map(|id| &self.text[range(&self.ends, id)])
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.ends.len()
    }
}

#[cfg(test)]
mod tests {
    use super::Spellings;

    #[test]
    fn finds_both_ways_and_the_last_of_equals() {
        let words: Vec<String> = (0..1000).map(|i| format!("w{}", i % 900)).chain([String::new()]).collect();
        let mut all = Spellings::new(words.iter().map(String::as_str));
        all.push("w5");
        assert_eq!(
            (all.id("w5"), all.id("w899"), all.id("w99"), all.id("")),
            (Some(1001), Some(899), Some(999), Some(1000))
        );
        assert_eq!((all.id("w900"), all.get(1002), all.get(905)), (None, None, Some("w5")));
        assert!(all.iter().eq(words.iter().map(String::as_str).chain(["w5"])));
        assert_eq!(all.len(), 1002);
    }
}
