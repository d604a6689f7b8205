/* Compresses and decompresses a megabyte and compares. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zstd.h>

int main(void)
{
    size_t const size = 1 << 20;
    size_t const bound = ZSTD_compressBound(size);
    char *plain = malloc(size), *back = malloc(size), *packed = malloc(bound);
    if (!plain || !back || !packed)
        return 1;
    for (size_t i = 0; i < size; i++)
        plain[i] = (char)((i * i) >> 7);

    size_t const packed_size = ZSTD_compress(packed, bound, plain, size, 19);
    if (ZSTD_isError(packed_size)) {
        fprintf(stderr, "compress: %s\n", ZSTD_getErrorName(packed_size));
        return 1;
    }
    size_t const back_size = ZSTD_decompress(back, size, packed, packed_size);
    if (back_size != size || memcmp(plain, back, size) != 0) {
        fprintf(stderr, "what came back differs\n");
        return 1;
    }
    printf("zstd %s: %zu bytes -> %zu -> %zu, equal\n", ZSTD_versionString(), size, packed_size, back_size);
    free(plain);
    free(back);
    free(packed);
    return 0;
}
