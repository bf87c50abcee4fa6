//! What the measurements of custom sources look like so far in this run: shared by all sources, as tables are.
//!
//! The first batch of a field settles its type, as it does in the lake. From then on each batch has that type: integers go into a float
//! field, an integer field becomes a float field with the first float, and nothing else is converted.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use plimsoll_nats::{
    Name,
    batch::{FieldType, MAX_COLUMNS},
    spelling,
};

use super::notes::Refusal;

/// What a column is to its measurement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Tells series apart.
    Tag,
    /// Is measured, and of that type.
    Field(FieldType),
}

/// The columns of all custom measurements. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Schema(Arc<Mutex<HashMap<Name, Table>>>);

#[derive(Debug, Default)]
struct Table {
    columns: HashMap<Name, Known>,
}

#[derive(Debug)]
struct Known {
    role: Role,
    /// How the source that came first spells it: another spelling gets another name.
    spelled: Box<str>,
}

impl Schema {
    /// Finds or makes room for a column that a source spells so. Returns its name and its role, which for a field may be of another type
    /// than asked for: that of its first batch.
    ///
    /// Fails when the name has the other role already, or when the measurement has as many columns as a table may.
    pub fn column(&self, measurement: &Name, spelled: &str, role: Role) -> Result<(Name, Role), Refusal> {
        let mut tables = self.lock();
        let table = tables.entry(measurement.clone()).or_default();
        let usual = spelling::column(spelled);
        match table.columns.get_mut(&usual) {
            Some(known) if &*known.spelled == spelled => known.settle(usual, role),
            Some(_) => table.find_or_add(spelling::distinct(spelled), spelled, role),
            None => table.find_or_add(usual, spelled, role),
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Name, Table>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn find_or_add(&mut self, name: Name, spelled: &str, role: Role) -> Result<(Name, Role), Refusal> {
        if let Some(known) = self.columns.get_mut(&name) {
            return known.settle(name, role);
        }
        if self.columns.len() >= MAX_COLUMNS {
            return Err(Refusal::Columns);
        }
        self.columns.insert(name.clone(), Known { role, spelled: spelled.into() });
        Ok((name, role))
    }
}

impl Known {
    fn settle(&mut self, name: Name, role: Role) -> Result<(Name, Role), Refusal> {
        if (self.role, role) == (Role::Field(FieldType::Integer), Role::Field(FieldType::Float)) {
            self.role = role;
        }
        match (self.role, role) {
            (Role::Tag, Role::Tag) | (Role::Field(_), Role::Field(_)) => Ok((name, self.role)),
            _ => Err(Refusal::Role),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLOAT: Role = Role::Field(FieldType::Float);
    const INTEGER: Role = Role::Field(FieldType::Integer);

    fn name(text: &str) -> Name {
        Name::parse(text).unwrap()
    }

    #[test]
    fn the_first_type_and_role_stay_but_integers_become_floats() {
        let schema = Schema::default();
        let m = name("m");
        assert_eq!(schema.column(&m, "x", INTEGER), Ok((name("x"), INTEGER)));
        assert_eq!(schema.clone().column(&m, "x", Role::Field(FieldType::Text)), Ok((name("x"), INTEGER)));
        assert_eq!(schema.clone().column(&m, "x", FLOAT), Ok((name("x"), FLOAT)));
        assert_eq!(schema.column(&m, "x", INTEGER), Ok((name("x"), FLOAT)));
        assert_eq!(schema.column(&m, "x", Role::Tag), Err(Refusal::Role));
        assert_eq!(schema.column(&name("other"), "x", Role::Tag), Ok((name("x"), Role::Tag)));
    }

    #[test]
    fn two_spellings_of_one_name_stay_apart() {
        let schema = Schema::default();
        let m = name("m");
        assert_eq!(schema.column(&m, "foo", FLOAT), Ok((name("foo"), FLOAT)));
        let (other, _) = schema.column(&m, "Foo", FLOAT).unwrap();
        assert!(other.starts_with("foo_"), "{other}");
        assert_eq!(schema.column(&m, "Foo", FLOAT), Ok((other.clone(), FLOAT)));
        assert_eq!(schema.column(&m, "foo", FLOAT), Ok((name("foo"), FLOAT)));
        assert_ne!(schema.column(&m, "fOO", FLOAT).unwrap().0, other);
    }

    #[test]
    fn a_measurement_has_no_more_columns_than_a_table() {
        let schema = Schema::default();
        let m = name("m");
        for number in 0..MAX_COLUMNS {
            schema.column(&m, &format!("f{number}"), FLOAT).unwrap();
        }
        assert_eq!(schema.column(&m, "one_more", FLOAT), Err(Refusal::Columns));
        assert!(schema.column(&m, "f7", FLOAT).is_ok());
    }
}
