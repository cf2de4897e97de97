"""A type of an extension that nobody knows."""

CREATE_THING = """
CREATE TYPE thing;
CREATE FUNCTION thingin(cstring) RETURNS thing LANGUAGE internal IMMUTABLE STRICT AS 'textin';
CREATE FUNCTION thingout(thing) RETURNS cstring LANGUAGE internal IMMUTABLE STRICT AS 'textout';
CREATE TYPE thing (INPUT = thingin, OUTPUT = thingout, INTERNALLENGTH = VARIABLE, STORAGE = extended, DELIMITER = '/');
"""
