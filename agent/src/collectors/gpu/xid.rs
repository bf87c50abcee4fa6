//! What XID errors say, in short.

/// What the number of an XID error stands for; none of those that seldom come.
///
/// After NVIDIA's document "XID Errors" (docs.nvidia.com/deploy/xid-errors).
#[must_use]
pub fn meaning(xid: u64) -> Option<&'static str> {
    Some(match xid {
        8 => "the GPU stopped processing",
        13 => "exception of the graphics engine, mostly a program's fault",
        31 => "page fault of GPU memory, mostly a program's fault",
        32 => "corrupt commands from a program or over PCIe",
        43 => "a program's channel stopped, mostly by its own fault",
        45 => "work was cleared away after an earlier error or a program's end",
        48 => "memory error that ECC could not correct",
        61 | 62 => "the GPU's internal controller halted",
        63 => "a faulty part of the memory is being replaced by a spare one",
        64 => "a faulty part of the memory could not be replaced by a spare one",
        68 => "exception of the video decoder",
        69 => "error of the graphics engine's class",
        74 => "error of an NVLink connection",
        79 => "the GPU has fallen off the bus",
        92 => "memory errors that ECC corrects are frequent",
        94 => "memory error that ECC could not correct, contained to one program",
        95 => "memory error that ECC could not correct and that may have hit every program",
        109 => "a switch between programs took too long",
        119 | 120 => "the GPU's system processor (GSP) failed",
        121 => "error of the connection to the CPU",
        154 => "the GPU needs to be reset or its host restarted",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn well_known_errors_have_a_meaning_and_others_none() {
        assert_eq!(meaning(79), Some("the GPU has fallen off the bus"));
        assert_eq!(meaning(999), None);
    }
}
