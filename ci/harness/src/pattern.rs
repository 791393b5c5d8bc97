//! What the workloads write into their pages: contents that follow from a seed, the page's number and a generation, so
//! that every byte can be checked later without a copy.

use serde::{Deserialize, Serialize};

use crate::sys::{PAGE_SIZE, Page};

/// Which kinds of pages a region has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mix {
    /// Of eight pages one is zero, three are random, one is text, three are half random: what programs look like.
    Mixed,
    /// Every page is half random and half constant: none is zero, and all compress to one half.
    Half,
}

/// Fills a page with its contents.
pub fn fill(page: &mut Page, mix: Mix, seed: u64, number: u64, generation: u32) {
    let mut state = scramble(seed ^ scramble(number ^ (u64::from(generation) << 40)));
    let kind = match mix {
        Mix::Mixed => state % 8,
        Mix::Half => 5,
    };
    match kind {
        0 => page.fill(0),
        1..=3 => fill_random(page, &mut state),
        4 => {
            let line = format!("page {number:012} generation {generation:08} of seed {seed:020}\n");
            for (byte, from) in page.iter_mut().zip(line.bytes().cycle()) {
                *byte = from;
            }
        }
        _ => {
            let (random, constant) = page.split_at_mut(PAGE_SIZE / 2);
            fill_random(random, &mut state);
            constant.fill(state as u8 | 1);
        }
    }
}

/// xorshift64*: fast, and incompressible enough.
fn fill_random(bytes: &mut [u8], state: &mut u64) {
    for word in bytes.chunks_exact_mut(8) {
        *state ^= *state >> 12;
        *state ^= *state << 25;
        *state ^= *state >> 27;
        word.copy_from_slice(&state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes());
    }
}

/// splitmix64's finalizer; never 0, which xorshift could not leave.
pub fn scramble(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (z ^ (z >> 31)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(mix: Mix, number: u64, generation: u32) -> Page {
        let mut page = [0xaa; PAGE_SIZE];
        fill(&mut page, mix, 1, number, generation);
        page
    }

    #[test]
    fn contents_follow_from_number_and_generation_alone() {
        for number in 0..64 {
            assert_eq!(page(Mix::Mixed, number, 3), page(Mix::Mixed, number, 3));
            assert_ne!(page(Mix::Half, number, 3), page(Mix::Half, number + 1, 3));
            assert_ne!(page(Mix::Half, number, 3), page(Mix::Half, number, 4));
        }
    }

    #[test]
    fn a_mixed_region_has_zero_pages_and_a_half_region_has_none() {
        let zeros = |mix| (0..800).filter(|&n| page(mix, n, 0).iter().all(|&b| b == 0)).count();
        assert!((50..150).contains(&zeros(Mix::Mixed)), "{}", zeros(Mix::Mixed));
        assert_eq!(zeros(Mix::Half), 0);
    }
}
