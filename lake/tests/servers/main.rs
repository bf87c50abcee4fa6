//! The lake on PostgreSQL and S3: what others prove with SQLite and folders, here with what a fleet has, beside commits and with
//! connections that end at the worst moment. Where both kinds of catalogs may differ, both are tried.

mod backup;
mod commits_harmed;
mod creation;
mod history;
mod imports;
mod maintenance;
mod reading;
mod rows;
