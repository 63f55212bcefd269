package backends

import "time"

// UnknownSize is the Size of a record whose registry does not tell it.
const UnknownSize int64 = -1

// Record is what is known of one image. It is a plain value; Labels is
// shared between copies and is never written after the record was returned.
//
// A record is shown to people (extended attributes, JSON, logs): no field
// may hold a credential or an address that carries one.
type Record struct {
	Ref

	// Version is opaque, not empty, and equal exactly while the image's
	// bytes are equal under this Ref: a generation, an ETag, a container id.
	Version string
	// Word is the registry's own word for the version where that differs
	// from Version (Singularity Registry: "sha256.…" or an MD5); it may
	// change while the bytes stay. Empty means: the same as Version.
	Word string
	// Digest is zero unless the registry states one and its algorithm is certain.
	Digest Digest
	// Size is in bytes: exact, or UnknownSize. Never an estimate.
	Size int64
	// Created is when this version was made; zero when not known.
	Created time.Time
	// Frozen says that the registry refuses to change or delete the image.
	Frozen bool
	// Labels are the image's labels as far as the registry tells them.
	Labels map[string]string
	// Attributes are further facts that the registry tells, by its own
	// names; shown in the record's JSON. Values have passed through no
	// interpretation but carry no secret.
	Attributes map[string]string
	// URL is a public address of the image for people, or empty.
	URL string
	// Full is false when the record came from a listing and Stat may tell more.
	Full bool
}

// Matches reports whether version names this record's version: the opaque
// Version, the registry's own Word, or the Digest with or without its
// algorithm.
func (r Record) Matches(version string) bool {
	if version == "" {
		return false
	}
	if version == r.Version || version == r.Word {
		return true
	}
	if r.Digest.IsZero() {
		return false
	}
	if version == r.Digest.Hex {
		return true
	}
	d, ok := ParseDigest(version)
	return ok && d == r.Digest
}

// SameVersion reports whether a and b are certainly the same bytes of the
// same image.
func SameVersion(a, b Record) bool {
	return a.Ref == b.Ref && a.Version != "" && a.Version == b.Version
}
