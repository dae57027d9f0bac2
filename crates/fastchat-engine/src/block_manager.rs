//! Who owns which cache block. Counts references, remembers the contents of full blocks by hash so that equal prefixes
//! share memory, and forgets the least recently used when room is needed. Numbers only; the bytes live elsewhere.

use std::collections::BTreeMap;

use hashbrown::HashMap;

use crate::block_hash::BlockHash;

#[derive(Clone, Copy, Debug, Default)]
struct Block {
    references: u32,
    /// Set while the cache knows this block's contents.
    hash: Option<BlockHash>,
    /// Key in `evictable` while unreferenced and hashed.
    last_use: u64,
}

/// The pool of blocks.
#[derive(Clone, Debug)]
pub struct BlockManager {
    blocks: Vec<Block>,
    /// Unreferenced blocks with contents nobody can find.
    free: Vec<u32>,
    /// Unreferenced blocks with known contents, by last use.
    evictable: BTreeMap<u64, u32>,
    cached: HashMap<BlockHash, u32>,
    clock: u64,
}

impl BlockManager {
    /// A pool of `num_blocks` free blocks.
    pub fn new(num_blocks: usize) -> Self {
        Self {
            blocks: vec![Block::default(); num_blocks],
            free: (0..num_blocks as u32).rev().collect(),
            evictable: BTreeMap::new(),
            cached: HashMap::new(),
            clock: 0,
        }
    }

    /// All blocks.
    pub fn num_blocks(&self) -> usize {
        self.blocks.len()
    }

    /// Blocks nobody references, remembered contents included.
    pub fn num_free(&self) -> usize {
        self.free.len() + self.evictable.len()
    }

    /// Longest run of `hashes` the cache knows, as blocks. References none of them.
    pub fn lookup(&self, hashes: &[BlockHash]) -> Vec<u32> {
        hashes.iter().map_while(|hash| self.cached.get(hash).copied()).collect()
    }

    /// Blocks of `num_free` that taking a reference to each of `blocks` would use up.
    pub fn num_unreferenced(&self, blocks: &[u32]) -> usize {
        blocks.iter().filter(|&&block| self.blocks[block as usize].references == 0).count()
    }

    /// Takes a reference to each of `blocks`, which `lookup` returned.
    pub fn share(&mut self, blocks: &[u32]) {
        for &id in blocks {
            let block = &mut self.blocks[id as usize];
            if block.references == 0 {
                let removed = self.evictable.remove(&block.last_use);
                assert_eq!(removed, Some(id), "block {id} is neither referenced nor evictable: this is a bug");
            }
            block.references += 1;
        }
    }

    /// A block with one reference, at the price of the least recently used contents; `None` when all are referenced.
    pub fn allocate(&mut self) -> Option<u32> {
        let id = match self.free.pop() {
            Some(id) => id,
            None => self.evictable.pop_first()?.1,
        };
        let block = &mut self.blocks[id as usize];
        if let Some(hash) = block.hash.take() {
            self.cached.remove(&hash);
        }
        block.references = 1;
        Some(id)
    }

    /// Gives back one reference to each of a sequence's blocks, the tail first: a prefix outlives what follows it.
    pub fn release(&mut self, table: &[u32]) {
        for &id in table.iter().rev() {
            let block = &mut self.blocks[id as usize];
            assert!(block.references > 0, "block {id} was released twice: this is a bug");
            block.references -= 1;
            if block.references == 0 {
                if block.hash.is_some() {
                    self.clock += 1;
                    block.last_use = self.clock;
                    self.evictable.insert(self.clock, id);
                } else {
                    self.free.push(id);
                }
            }
        }
    }

    /// Makes the contents of a full, computed block findable, unless they were. The first block with some contents wins.
    pub fn remember(&mut self, id: u32, hash: BlockHash) -> bool {
        let block = &mut self.blocks[id as usize];
        let is_new = block.hash.is_none() && !self.cached.contains_key(&hash);
        if is_new {
            block.hash = Some(hash);
            self.cached.insert(hash, id);
        }
        is_new
    }

    /// Lets nobody find the contents of these blocks any more, and returns what they were.
    pub fn forget(&mut self, table: &[u32]) -> Vec<BlockHash> {
        let hashes: Vec<_> = table.iter().filter_map(|&id| self.blocks[id as usize].hash.take()).collect();
        for hash in &hashes {
            self.cached.remove(hash);
        }
        hashes
    }

    /// Checks the books against the tables of all owners. For tests; linear in everything.
    ///
    /// # Errors
    /// What does not add up.
    pub fn check<'a>(&self, tables: impl Iterator<Item = &'a [u32]>) -> Result<(), String> {
        let mut references = vec![0; self.blocks.len()];
        for table in tables {
            for &id in table {
                references[id as usize] += 1;
            }
        }
        let mut unreferenced = vec![0; self.blocks.len()];
        self.free.iter().chain(self.evictable.values()).for_each(|&id| unreferenced[id as usize] += 1);
        for (id, block) in self.blocks.iter().enumerate() {
            if block.references != references[id] {
                return Err(format!("block {id}: counted {}, owners {}", block.references, references[id]));
            }
            if unreferenced[id] != u32::from(block.references == 0) {
                return Err(format!("block {id}: {} references, {}x free", block.references, unreferenced[id]));
            }
            if block.hash.is_some_and(|hash| self.cached.get(&hash) != Some(&(id as u32))) {
                return Err(format!("block {id}: its hash leads elsewhere"));
            }
        }
        if self.cached.values().any(|&id| self.blocks[id as usize].hash.is_none()) {
            return Err("a hash leads to a block without one".to_owned());
        }
        Ok(())
    }
}
