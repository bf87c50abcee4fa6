//! Disks, file systems and folders.

use super::*;

const DISK_IO: &str = "system.disk.io";
const DISK_OPERATIONS: &str = "system.disk.operations";

pub const FILESYSTEM: MeasurementSpec = MeasurementSpec {
    name: "filesystem",
    description: "Space and inodes of mounted file systems; pseudo file systems are left out",
    tags: &[
        tag("device", "What is mounted"),
        tag("fstype", "Type of the file system"),
        tag("mountpoint", "Where it is mounted"),
    ],
    fields: &[
        bytes("total_bytes", "Size", ("system.filesystem.limit", "node_filesystem_size_bytes")),
        bytes("used_bytes", "Space in use", ("system.filesystem.usage", "")),
        bytes(
            "available_bytes",
            "Space that programs without privileges can use",
            ("system.filesystem.usage", "node_filesystem_avail_bytes"),
        ),
        percent(
            "used_percent",
            "Used in percent of used and available together, as `df` shows it",
            ("system.filesystem.utilization", ""),
        ),
        count("total_inodes", "Inodes; nil where the file system has no fixed number", ("", "node_filesystem_files")),
        count("used_inodes", "Inodes in use", ("", "")),
        count("free_inodes", "Inodes that nothing uses", ("", "node_filesystem_files_free")),
        percent("used_inodes_percent", "Inodes in use in percent of all", ("", "")),
        field(
            "read_only",
            FieldType::Bool,
            FieldKind::Gauge,
            "bool",
            "Whether it is mounted read-only",
            ("", "node_filesystem_readonly"),
        ),
    ],
};

pub const DISKIO: MeasurementSpec = MeasurementSpec {
    name: "diskio",
    description: "Input and output of block devices",
    tags: &[tag("device", "Name of the whole device, such as `nvme0n1`")],
    fields: &[
        total("read_bytes_total", "bytes", "Bytes read", (DISK_IO, "node_disk_read_bytes_total")),
        total("written_bytes_total", "bytes", "Bytes written", (DISK_IO, "node_disk_written_bytes_total")),
        total("reads_total", "count", "Reads completed", (DISK_OPERATIONS, "node_disk_reads_completed_total")),
        total("writes_total", "count", "Writes completed", (DISK_OPERATIONS, "node_disk_writes_completed_total")),
        field(
            "busy_seconds_total",
            FieldType::Float,
            FieldKind::Counter,
            "seconds",
            "Time with at least one request in flight",
            ("system.disk.io_time", "node_disk_io_time_seconds_total"),
        ),
        count("in_flight", "Requests in flight", ("", "node_disk_io_now")),
        percent("busy_percent", "Time with a request in flight since the previous sample", ("", "")),
    ],
};

pub const DIRECTORY_SIZE: MeasurementSpec = MeasurementSpec {
    name: "directory_size",
    description: "Size of configured folders, within their file system; a row a completed scan",
    tags: &[tag("path", "The folder")],
    fields: &[
        bytes("disk_bytes", "Space that its files and folders take up on disk, as `du -sx` counts it", ("", "")),
        bytes("apparent_bytes", "Sum of the lengths of its files and symbolic links, as programs read them", ("", "")),
        count("files", "What is no folder in it; a file with several names counts once", ("", "")),
        count("directories", "Folders in it, itself included", ("", "")),
        count("unreadable", "Folders and files in it that could not be read, and so are missing in the sums", ("", "")),
        field(
            "partial",
            FieldType::Bool,
            FieldKind::Gauge,
            "bool",
            "Whether something is missing in the sums or, of very many files with several names, estimated",
            ("", ""),
        ),
        gauge(
            "scan_duration_seconds",
            "seconds",
            "How long the scan took, with the rests that spare the disk",
            ("", ""),
        ),
    ],
};
