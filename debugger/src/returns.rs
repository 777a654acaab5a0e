//! Which return belongs to which call: by the stack pointer, which is another one for every call that is open.

/// Stacks of the kernel are as large as this, and lie at multiples of it.
const STACK: u64 = 1 << 14;
/// Calls that are kept open. A guest can leave any number of stacks without a return.
const MOST_OPEN: usize = 4096;

/// A call that has not returned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Open<T> {
    /// Who made it: its `task_struct`.
    pub task: u64,
    /// Where its return address lies.
    pub slot: u64,
    /// Where it returns to.
    pub address: u64,
    /// Its return could have come while nobody watched for it: there are few breakpoints.
    pub was_unwatched: bool,
    /// Whatever belongs to it.
    pub what: T,
}

impl<T> Open<T> {
    /// Whether a stack that is in use at `slot` by `task` has no room for this call any more.
    fn is_left(&self, task: u64, slot: u64) -> bool {
        self.slot / STACK == slot / STACK && (self.slot <= slot || self.task != task)
    }
}

/// The calls that are open.
#[derive(Debug)]
pub struct Returns<T> {
    /// The newest last.
    open: Vec<Open<T>>,
}

impl<T> Returns<T> {
    pub fn new() -> Self {
        Self { open: Vec::new() }
    }

    /// A call begins. Given back are those that will never be seen to return: their stack is used by others.
    pub fn enter(&mut self, call: Open<T>) -> Vec<Open<T>> {
        let mut left = self.leave_stack(call.task, call.slot);
        if self.open.len() == MOST_OPEN {
            left.push(self.open.remove(0));
        }
        self.open.push(call);
        left
    }

    /// The instruction at `address` is next, with this stack pointer: the call that returned there, and those that have been left
    /// without a return by then.
    pub fn leave(&mut self, address: u64, stack_pointer: u64) -> (Option<Open<T>>, Vec<Open<T>>) {
        let slot = stack_pointer.wrapping_sub(8);
        let is_it = |open: &Open<T>| open.address == address && open.slot == slot;
        let Some(index) = self.open.iter().rposition(is_it) else {
            return (None, Vec::new());
        };
        let returned = self.open.remove(index);
        let left = self.leave_stack(returned.task, slot);
        (Some(returned), left)
    }

    fn leave_stack(&mut self, task: u64, slot: u64) -> Vec<Open<T>> {
        self.open.extract_if(.., |open| open.is_left(task, slot)).collect()
    }

    /// Up to `most` addresses to watch, of the newest calls; the others are noted to be unwatched.
    pub fn watched(&mut self, most: usize) -> Vec<u64> {
        let mut addresses = Vec::with_capacity(most);
        for open in self.open.iter_mut().rev() {
            if addresses.contains(&open.address) {
                continue;
            }
            if addresses.len() < most {
                addresses.push(open.address);
            } else {
                open.was_unwatched = true;
            }
        }
        addresses
    }

    /// All that are open, the oldest first.
    pub fn into_open(self) -> Vec<Open<T>> {
        self.open
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(task: u64, slot: u64, address: u64, what: &'static str) -> Open<&'static str> {
        Open {
            task,
            slot,
            address,
            was_unwatched: false,
            what,
        }
    }

    fn names(calls: &[Open<&'static str>]) -> Vec<&'static str> {
        calls.iter().map(|call| call.what).collect()
    }

    #[test]
    fn nested_calls_return_in_any_order_of_tasks() {
        let mut returns = Returns::new();
        for (task, slot, what) in [(1, 0x8f00, "outer"), (1, 0x8e00, "inner"), (2, 0xcf00, "other")] {
            assert!(returns.enter(call(task, slot, 0x10, what)).is_empty());
        }
        // The same address on a stack where nobody is.
        assert_eq!(returns.leave(0x10, 0x8e08 + 8), (None, Vec::new()));
        assert_eq!(returns.leave(0x20, 0x8e08), (None, Vec::new()));
        for (stack_pointer, what) in [(0x8e08, "inner"), (0xcf08, "other"), (0x8f08, "outer")] {
            let (returned, left) = returns.leave(0x10, stack_pointer);
            assert_eq!((returned.unwrap().what, left.len()), (what, 0));
        }
        assert!(returns.into_open().is_empty());
    }

    #[test]
    fn a_stack_that_is_used_again_ends_what_was_open_on_it() {
        let mut returns = Returns::new();
        returns.enter(call(1, 0x8f00, 0x10, "outer"));
        returns.enter(call(1, 0x8e00, 0x10, "never seen to return"));
        // As deep as that one: it is gone, and the outer one is not.
        assert_eq!(
            names(&returns.enter(call(1, 0x8e00, 0x10, "next"))),
            ["never seen to return"]
        );
        // The outer one returns without the inner one.
        let (returned, left) = returns.leave(0x10, 0x8f08);
        assert_eq!((returned.unwrap().what, names(&left)), ("outer", vec!["next"]));
        // Of a task that has ended, whose stack another one has got: deeper, but not its.
        returns.enter(call(1, 0x8f00, 0x10, "of the dead"));
        assert_eq!(names(&returns.enter(call(3, 0x8800, 0x10, "new"))), ["of the dead"]);
        assert_eq!(names(&returns.into_open()), ["new"]);
    }

    #[test]
    fn the_newest_calls_are_watched_and_the_others_know() {
        let mut returns = Returns::new();
        for (index, address) in [0x10, 0x20, 0x30, 0x20, 0x40].into_iter().enumerate() {
            returns.enter(call(index as u64, (index as u64 + 1) * STACK, address, "call"));
        }
        assert_eq!(returns.watched(3), [0x40, 0x20, 0x30]);
        let unwatched: Vec<_> = returns.into_open().iter().map(|open| open.was_unwatched).collect();
        assert_eq!(unwatched, [true, false, false, false, false]);
    }

    #[test]
    fn stacks_that_are_never_left_are_bounded() {
        let mut returns = Returns::new();
        let lost: usize = (0..MOST_OPEN as u64 + 5)
            .map(|index| returns.enter(call(1, index * STACK + 8, 0x10, "call")).len())
            .sum();
        assert_eq!((lost, returns.into_open().len()), (5, MOST_OPEN));
    }
}
