// Package cache remembers what a registry said and keeps the bytes it sent.
//
// Three parts, tied together by Cache:
//
//   - Catalog (catalog.go, index.go): listings and records with their age;
//     the only caller of a backend's List, Stat, Push, Move and Delete;
//   - Store (store.go, blob.go, flight.go, chunks.go, evict.go): image bytes
//     by content, fetched lazily, verified, promoted and evicted; the only caller of
//     Open, OpenRange and OpenLocal;
//   - Stage (stage.go): bytes that are on their way to a registry.
//
// Several processes may use one cache directory: blobs/ is shared by place
// and mark, a partial file belongs to whoever holds its lock, and every process has
// its own index. An index is an accelerator: lost or damaged, it is rebuilt.
package cache
