package fs

import (
	"crypto/sha256"
	"encoding/binary"
)

// inodeNumber derives a stable number from what an inode stands for. The
// top bit is clear: numbers above it are handed out to stage files.
func inodeNumber(parts ...string) uint64 {
	h := sha256.New()
	var length [8]byte
	for _, part := range parts {
		binary.LittleEndian.PutUint64(length[:], uint64(len(part)))
		h.Write(length[:])
		h.Write([]byte(part))
	}
	n := binary.LittleEndian.Uint64(h.Sum(nil)) &^ (1 << 63)
	return max(n, 2) // 0 is no inode and 1 is the root
}
