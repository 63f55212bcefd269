// Package fs is the mount: it turns a catalog, a store of bytes and a stage
// into directories and files.
//
// collection.go holds directories, image.go images, read.go and mode.go the
// handles that read them, write.go and publish.go the files being written, name.go the
// names, xattr.go the extended attributes, errno.go the only table from error
// kinds to errnos. Nothing here talks to a registry; package cache does.
//
// Identity: an image's inode stands for one immutable content, so what the
// kernel caches for it is true for ever. A tag that moves gets a new inode. A file
// being written is never an image's inode: opening an image for writing is
// answered ESTALE once, the kernel looks the name up again, and that look-up
// yields a fresh stage inode.
//
// Lock order: node.mu before mount.mu; neither is held across the network,
// the cache or a call into the kernel.
package fs
