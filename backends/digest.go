package backends

import (
	"crypto/md5"  // a registry's own identifier, not a defence
	"crypto/sha1" // likewise
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"hash"
	"strings"
)

// Digest is a hash of an image's bytes. The zero Digest means "not known".
// Digests are comparable; equal digests of a strong algorithm are equal bytes.
type Digest struct {
	Algorithm string // "sha256", "md5", … in lower case
	Hex       string // lower case
}

var digestAlgorithms = []struct {
	name string
	size int // of the hash, in bytes
	new  func() hash.Hash
}{
	{"sha256", sha256.Size, sha256.New},
	{"sha512", sha512.Size, sha512.New},
	{"md5", md5.Size, md5.New},
	{"sha1", sha1.Size, sha1.New},
}

// ParseDigest reads "algorithm:hex" or "algorithm.hex" (the spelling of Singularity
// Registry and the library). It reports false unless the algorithm is
// one this program can compute and the hex has that algorithm's length: a bare
// hex string is no digest, because its algorithm would be a guess.
func ParseDigest(s string) (Digest, bool) {
	i := strings.IndexAny(s, ":.")
	if i < 0 {
		return Digest{}, false
	}
	return NewDigest(strings.ToLower(s[:i]), s[i+1:])
}

// NewDigest checks and lower-cases a digest whose algorithm is certain.
func NewDigest(algorithm, hexSum string) (Digest, bool) {
	raw, err := hex.DecodeString(hexSum)
	if err != nil {
		return Digest{}, false
	}
	for _, a := range digestAlgorithms {
		if a.name == algorithm && a.size == len(raw) {
			return Digest{Algorithm: algorithm, Hex: strings.ToLower(hexSum)}, true
		}
	}
	return Digest{}, false
}

// SHA256 makes a Digest from a finished SHA-256 sum.
func SHA256(sum []byte) Digest {
	return Digest{Algorithm: "sha256", Hex: hex.EncodeToString(sum)}
}

// IsZero reports that no digest is known.
func (d Digest) IsZero() bool { return d == Digest{} }

// String gives algorithm:hex, or "" when the digest is not known.
func (d Digest) String() string {
	if d.IsZero() {
		return ""
	}
	return d.Algorithm + ":" + d.Hex
}

// NewHash returns a fresh hash of d's algorithm, or nil when d is zero or of
// an algorithm this program cannot compute.
func (d Digest) NewHash() hash.Hash {
	for _, a := range digestAlgorithms {
		if a.name == d.Algorithm {
			return a.new()
		}
	}
	return nil
}
